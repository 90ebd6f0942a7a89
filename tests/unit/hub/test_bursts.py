"""Frames that arrive together: they may go on in one write, and nobody may be able to tell."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
import trio.testing
from wsproto import events

from relay.hub.fanout import SLICE
from tests.unit.memory import ANN, SIZE, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


def together(phone: Client, *messages: dict[str, Any]) -> bytes:
    """Messages on the wire, for one read to take them all."""
    frames = [phone.protocol.send(events.TextMessage(json.dumps(each))) for each in messages]
    whole = b"".join(frames)
    assert len(whole) <= SIZE
    return whole


async def send_at_once(phone: Client, *messages: dict[str, Any]) -> None:
    phone.link.send(together(phone, *messages))
    await trio.testing.wait_all_tasks_blocked()


def frame(content: bytes, **fields: Any) -> dict[str, Any]:
    return {"type": "video-frame", "data": base64.b64encode(content).decode(), **fields}


def numbered(count: int, size: int = 100, **fields: Any) -> list[dict[str, Any]]:
    return [frame(b"%03d" % number * size, **fields) for number in range(count)]


async def seen(client: Client) -> list[tuple[int, bytes]]:
    """The `seq` and the content of all frames that come before nothing comes for a while."""
    frames: list[tuple[int, bytes]] = []
    while True:
        with trio.move_on_after(2) as scope:
            message = await client.receive_type("video-frame")
            data = message["data"]
            content = data if isinstance(data, bytes) else base64.b64decode(data)
            frames.append((message["seq"], content))
        if scope.cancelled_caught:
            return frames


@pytest.mark.parametrize("size", [1, 100, 1500])
@pytest.mark.parametrize("msgpack", [False, True])
async def test_frames_that_come_at_once_arrive_one_by_one(
    relay: MemoryRelay, size: int, *, msgpack: bool
) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer(msgpack=msgpack, policy="lossless", capacity=1 << 20)
    await send_at_once(phone, *numbered(7, size))
    assert await seen(viewer) == [(n + 1, b"%03d" % n * size) for n in range(7)]
    ledger = relay.hub.ledger()
    assert (ledger.accepted, ledger.written, ledger.waiting) == (7, 7, 0)
    assert relay.metrics.frames_accepted == sum(relay.metrics.frame_age.counts) == 7


async def test_a_slow_viewer_gets_the_newest_of_what_came_at_once(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=4096)
    await send_at_once(phone, frame(b"x" * 20_000), *numbered(7))
    assert [seq for seq, _ in await seen(slow)] == [1, 8]
    ledger = relay.hub.ledger()
    assert (ledger.accepted, ledger.written, ledger.waiting) == (8, 2, 0)


async def test_what_the_link_did_not_take_of_a_row_may_still_be_skipped(relay: MemoryRelay) -> None:
    phone, slow = await relay.phone(), await relay.viewer(capacity=20_000)
    await send_at_once(phone, frame(b"x"))
    await slow.receive_type("video-frame")  # it answers at once: its link is calm
    await trio.testing.wait_all_tasks_blocked()
    await send_at_once(phone, *numbered(9, 1500))
    frames = await seen(slow)
    assert [seq for seq, _ in frames] == [2, 3, 4, 5, 10]
    assert [content for _, content in frames] == [b"%03d" % n * 1500 for n in (0, 1, 2, 3, 8)]
    ledger = relay.hub.ledger()
    assert (ledger.accepted, ledger.written, ledger.waiting) == (10, 6, 0)


async def test_a_row_that_ends_with_a_frame_in_the_link_leaves_the_rest_to_the_policy(
    relay: MemoryRelay,
) -> None:
    phone, slow = await relay.phone(), await relay.viewer(msgpack=True, policy="lossless")
    pipe = slow.link.incoming
    first = frame(b"a" * 3000)
    await send_at_once(phone, first)
    size = len(pipe.content)
    assert [seq for seq, _ in await seen(slow)] == [1]
    pipe.capacity = size  # one such frame and no byte more
    await send_at_once(phone, *numbered(3, 1000))
    assert len(pipe.content) == size
    assert [seq for seq, _ in await seen(slow)] == [2, 3, 4]


async def test_terms_hold_for_frames_that_come_at_once(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    thinned, windowed = await relay.viewer(maxFps=1), await relay.viewer(window=2)
    await send_at_once(phone, *numbered(7))
    assert [seq for seq, _ in await seen(thinned)] == [1]
    assert [seq for seq, _ in await seen(windowed)] == [1, 2]


async def test_who_lacks_a_keyframe_gets_no_delta_of_what_came_at_once(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await send_at_once(phone, *numbered(2, keyframe=False))
    late = await relay.viewer()
    await send_at_once(phone, *numbered(2, keyframe=False), *numbered(1, keyframe=True))
    await send_at_once(phone, *numbered(2, keyframe=False))
    assert [seq for seq, _ in await seen(late)] == [5, 6, 7]


async def test_what_is_no_base64_is_left_out_where_bytes_are_spoken(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    text, packed = await relay.viewer(), await relay.viewer(msgpack=True)
    broken = {"type": "video-frame", "data": "%%%"}
    await send_at_once(phone, *numbered(1), broken, *numbered(1))
    assert [seq for seq, _ in await seen(packed)] == [1, 3]
    assert [(await text.receive_type("video-frame"))["data"] for _ in range(3)][1] == "%%%"
    assert (await phone.receive_type("error"))["code"] == "INVALID_MESSAGE"


async def test_what_is_no_frame_is_done_in_its_place_among_frames(relay: MemoryRelay) -> None:
    phone, viewer = await relay.login(), await relay.viewer("a")
    other = await relay.viewer("b")
    await send_at_once(
        phone,
        *numbered(1),
        {"type": "register", "streamId": "a"},
        *numbered(2),
        {"type": "nonsense"},
        frame(b"not mine", streamId="b"),
        {"type": "register", "streamId": "b"},
        *numbered(3),
    )
    assert [seq for seq, _ in await seen(viewer)] == [1, 2]
    assert [seq for seq, _ in await seen(other)] == [1, 2, 3]
    codes = [(await phone.receive_type("error"))["code"] for _ in range(2)]
    assert codes == ["NOT_REGISTERED", "UNKNOWN_MESSAGE_TYPE"]


async def test_a_producer_that_never_pauses_leaves_others_their_turns(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    for _ in range(3):
        await relay.viewer(capacity=1 << 20)
    phone.link.send(together(phone, *numbered(300, 9)))
    turns = 0
    while relay.metrics.frames_accepted < 300:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert turns >= 300 * 3 / (2 * SLICE)


async def test_nothing_is_published_of_a_batch_after_the_stream_was_taken_over(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.hub.frames.frame.MAX_BURST_BYTES", 8 * 1024)
    old = await relay.phone()
    viewers = [await relay.viewer() for _ in range(2 * SLICE)]
    new = await relay.login(ANN)
    await new.send({"type": "register", "streamId": "front-door"})
    old.link.send(together(old, *numbered(60, 200)))
    assert (await old.closing())[0] == 4502
    await trio.testing.wait_all_tasks_blocked()
    await send_at_once(new, frame(b"of the new"))
    frames_seen = await seen(viewers[0])
    assert frames_seen[-1][1] == b"of the new"
    assert [seq for seq, _ in frames_seen] == list(range(1, len(frames_seen) + 1))
    assert 1 < len(frames_seen) < 61
