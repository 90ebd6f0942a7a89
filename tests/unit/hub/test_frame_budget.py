"""How many bytes of frames are kept, and what is given up when there are too many."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import trio
import trio.testing

from relay.hub.frames.frame import Frame
from relay.hub.frames.frame_budget import FRAME_BYTES, FrameBudget, _cheapest_first
from relay.hub.ledger import Drop
from relay.metrics import Limit
from relay.protocol.endings import Ending
from tests.unit.memory import ANN, BOB, Client, MemoryLink, MemoryRelay

pytestmark = pytest.mark.mock_clock

SIZE = 70_000
LIMIT = 8 * SIZE
STALLED = 600
"""Bytes that the link of a viewer that does not read has room for."""


@pytest.fixture
async def relay(relay: MemoryRelay) -> MemoryRelay:
    relay.hub.frame_budget = FrameBudget(3 * LIMIT, LIMIT)
    return relay


async def send(phone: Client, **fields: Any) -> None:
    await phone.send({"type": "video-frame", "data": "A" * SIZE, **fields})
    await trio.testing.wait_all_tasks_blocked()


def kept_bytes() -> int:
    """What all frames that anybody holds take, in all their forms."""
    gc.collect()
    return sum(size_of(each) for each in gc.get_objects() if isinstance(each, Frame))


def size_of(frame: Frame) -> int:
    """What a frame takes, looked at anew."""
    encoded = sum(len(each) for each in frame._encoded.values() if each is not None)
    parts = sum(len(each.whole) for each in (frame._parts or {}).values() if each is not None)
    return FRAME_BYTES + frame.size + encoded + parts


def is_within_limits(relay: MemoryRelay) -> bool:
    """Whether no more is kept than may be, and what is just being sent."""
    return relay.hub.frame_budget.bytes <= LIMIT + 4 * SIZE


async def test_what_is_counted_is_what_is_kept_and_in_the_end_nothing(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    clients = [phone, await relay.viewer(), await relay.viewer(msgpack=True)]
    clients += [await relay.viewer(capacity=STALLED), await relay.viewer(capacity=STALLED)]
    for _ in range(3):
        await send(phone)
        assert is_within_limits(relay)
        for client in clients[1:3]:
            await client.receive_type("video-frame")
    assert relay.hub.frame_budget.bytes == kept_bytes()
    assert not relay.metrics.limits_hit[Limit.FRAME_BUFFER]
    for client in clients:
        client.link.close()
    await trio.sleep(10)
    gc.collect()
    assert relay.hub.frame_budget.bytes == 0
    assert not relay.hub.frame_budget._accounts


async def test_many_streams_keep_no_more_than_their_owner_may(relay: MemoryRelay) -> None:
    for number in range(12):
        phone = await relay.phone(f"cam-{number}")
        viewers = [await relay.viewer(f"cam-{number}", msgpack=kind) for kind in (False, True)]
        await send(phone, keyframe=True)
        for viewer in viewers:
            await viewer.receive_type("video-frame")
        await send(phone, keyframe=False)
        for viewer in viewers:
            await viewer.receive_type("video-frame")
        assert is_within_limits(relay)
    assert relay.metrics.limits_hit[Limit.FRAME_BUFFER]


async def test_a_frame_that_all_have_received_takes_what_came_and_newcomers_get_the_same(
    relay: MemoryRelay,
) -> None:
    phone, size = await relay.phone(), 6_000
    viewers = [await relay.viewer(), await relay.viewer(msgpack=True)]
    await phone.send({"type": "video-frame", "data": "A" * size})
    first, second = [await viewer.receive_type("video-frame") for viewer in viewers]
    assert relay.hub.frame_budget.bytes == kept_bytes() == FRAME_BYTES + size + 2  # with quotes
    for like, msgpack in ((first, False), (second, True)):
        newcomer = await relay.viewer(msgpack=msgpack)
        assert await newcomer.receive_type("video-frame") == like
    assert relay.hub.frame_budget.bytes == kept_bytes() > FRAME_BYTES + 2 * size


async def test_a_frame_that_waits_for_a_viewer_stays_encoded(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer()
    await relay.viewer(capacity=STALLED)
    for _ in range(2):
        await phone.send({"type": "video-frame", "data": "A" * 6_000})
        await viewer.receive_type("video-frame")
    assert relay.hub.frame_budget.bytes == kept_bytes() > FRAME_BYTES + 2 * 6_000


async def test_no_delta_is_kept_for_newcomers(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await send(phone, keyframe=True)
    await send(phone, keyframe=False)
    assert relay.hub.frame_budget.bytes < 2 * SIZE
    newcomer = await relay.viewer()
    assert (await newcomer.receive_type("video-frame"))["seq"] == 1
    await send(phone, keyframe=False)
    await send(phone, keyframe=True)
    assert (await newcomer.receive_type("video-frame"))["seq"] == 4


async def test_older_frames_of_viewers_that_do_not_read_are_given_up_first(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    peers = []
    for number in range(10):
        # Each takes a small frame and lets one frame wait, another one each time.
        await phone.send({"type": "video-frame", "data": "AAAA"})
        await relay.viewer(capacity=STALLED, maxFps=1e-6, window=1)
        peers.append(relay.connections[-1].peer)
        stream = relay.hub._streams["front-door"]
        consumer = list(stream.watchers)[-1]
        consumer._frame_rate = None
        await send(phone)
        consumer._frame_rate = None if number % 2 else consumer._frame_rate
    assert is_within_limits(relay)
    await send(phone)
    assert all(peer.ending is None for peer in peers)


async def test_a_viewer_whose_frame_was_dropped_gets_the_next_one(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer(window=1)
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    await send(phone)  # waits for the ack
    others = [await relay.phone(f"cam-{number}") for number in range(10)]
    for other in others:
        await send(other)
    assert is_within_limits(relay)
    assert relay.hub.ledger().dropped[Drop.NO_ROOM.value] == 1
    await viewer.send({"type": "ack", "streamId": "front-door", "seq": 1})
    await send(phone)
    assert (await viewer.receive_type("video-frame"))["seq"] == 3
    ledger = relay.hub.ledger()
    assert ledger.accepted == ledger.written + sum(ledger.dropped.values()) + ledger.waiting


async def test_who_has_received_half_a_frame_is_cut_off_in_the_end(relay: MemoryRelay) -> None:
    phone, fast = await relay.phone(), await relay.viewer()
    for seq in range(1, 15):
        await relay.viewer(capacity=STALLED)
        await send(phone)
        assert (await fast.receive_type("video-frame"))["seq"] == seq
        assert is_within_limits(relay)
    assert relay.hub.frame_budget.bytes == kept_bytes()
    endings = [each.peer.ending for each in relay.connections]
    assert endings[:2] == [None, None]
    assert Ending.TOO_SLOW in endings


async def test_leaving_the_stream_does_not_hide_half_a_frame(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    for _ in range(14):
        viewer = await relay.viewer(capacity=STALLED)
        await send(phone)
        await viewer.send({"type": "unsubscribe", "streamId": "front-door"})
        await trio.testing.wait_all_tasks_blocked()
        assert is_within_limits(relay)


async def test_parts_of_a_frame_count_as_long_as_some_are_to_be_sent(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    for _ in range(14):
        viewer = await relay.open(capacity=STALLED)
        await viewer.send({"type": "auth", "token": ANN, "parts": True})
        await viewer.send(
            {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
        )
        await trio.testing.wait_all_tasks_blocked()
        assert relay.connections[-1].peer.takes_parts
        await send(phone)
        assert is_within_limits(relay)
    assert relay.hub.frame_budget.bytes == kept_bytes()
    assert relay.metrics.limits_hit[Limit.FRAME_BUFFER]


async def part_taker(relay: MemoryRelay, stream_id: str = "front-door", **terms: Any) -> Client:
    """A viewer that takes parts, and whose link takes hardly anything."""
    viewer = await relay.open(capacity=STALLED)
    await viewer.ask({"type": "auth", "token": ANN, "parts": True})
    request = {"type": "subscribe", "streamId": stream_id, "consumes": ["video-frame"], **terms}
    await viewer.ask(request)
    await trio.testing.wait_all_tasks_blocked()
    return viewer


@pytest.mark.parametrize("hasty", [False, True], ids=["no ack", "an ack before its end"])
async def test_a_frame_of_which_some_parts_were_given_up_leaves_the_window(
    relay: MemoryRelay, hasty: bool
) -> None:
    phone = await relay.phone()
    viewer = await part_taker(relay, window=1)
    await send(phone)
    [consumer] = relay.hub._streams["front-door"].watchers
    assert consumer._unsent_parts is not None
    if hasty:
        await viewer.send({"type": "ack", "streamId": "front-door", "seq": 1})
        await trio.testing.wait_all_tasks_blocked()
    consumer.drop_parts()
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive_type("video-frame"))["seq"] == 2


async def test_what_is_to_be_sent_in_parts_counts_between_two_of_them(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    await part_taker(relay)
    outlet, link = relay.connections[-1].peer.stream.outlet, relay.connections[-1].peer.stream.link
    await send(phone)
    assert isinstance(link, MemoryLink)
    link.outgoing.capacity = len(link.outgoing.content) + len(outlet._tail)
    link.outgoing.changed.unpark_all()
    await trio.testing.wait_all_tasks_blocked()
    assert not outlet.cut
    stream = relay.hub._streams["front-door"]
    [consumer] = stream.watchers
    for give_up in _cheapest_first(relay.hub.frame_budget.account("ann")):
        if not consumer.keeps_frames:
            break
        assert stream.fanout.keyframe is None or stream.fanout.keyframe._parts
        give_up()
    assert not consumer.keeps_frames


async def test_streams_that_have_ended_count_as_well(relay: MemoryRelay) -> None:
    phone = await relay.login()
    for number in range(14):
        await phone.ask({"type": "register", "streamId": f"cam-{number}"})
        await relay.viewer(f"cam-{number}", capacity=STALLED, policy="lossless")
        await send(phone)
        assert is_within_limits(relay)


async def test_one_owner_s_frames_cost_another_nothing(relay: MemoryRelay) -> None:
    relay.hub.frame_budget = FrameBudget(LIMIT, LIMIT)
    honest = await relay.phone("honest", BOB)
    await send(honest)
    for number in range(12):
        await send(await relay.phone(f"cam-{number}", ANN))
        assert is_within_limits(relay)
    newcomer = await relay.viewer("honest", BOB)
    assert (await newcomer.receive_type("video-frame"))["seq"] == 1


async def test_a_frame_whose_data_was_rewritten_does_not_keep_its_message(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    await relay.viewer(policy="lossless", window=1)
    frame = {"type": "video-frame", "metadata": {"a": 1}, "data": "-_" * 5_000}
    await phone.send(frame)
    tracemalloc.start()
    try:
        for _ in range(5):
            await phone.send(frame)
            await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert relay.hub.ledger().waiting == 5
    # Of each that waits its data and its encoding; and what the conversation takes beside.
    assert used < 5 * 20_000 + 70_000


@pytest.mark.parametrize(
    ("msgpack", "before", "behind", "frames"),
    [
        (False, 10_000, 0, 40),
        (False, 0, 100_000, 40),
        (False, 127_000, 127_000, 5),
        (True, 10_000, 0, 40),
        (True, 0, 100_000, 40),
        (True, 900_000, 0, 4),
    ],
)
async def test_a_frame_keeps_no_more_of_its_message_than_it_needs(
    relay: MemoryRelay, *, msgpack: bool, before: int, behind: int, frames: int
) -> None:
    phone = await relay.phone(msgpack=msgpack)
    await relay.viewer(policy="lossless", window=1)
    data = "A" * 9_000 if before and behind else "AAAA"
    frame = {
        "type": "video-frame",
        "unknown": "x" * before,
        "data": data.encode() if msgpack else data,
        "other": "x" * behind,
    }
    await phone.send(frame)
    tracemalloc.start()
    try:
        for _ in range(frames):
            await phone.send(frame)
            await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    accepted, waiting = relay.metrics.frames_accepted, relay.hub.ledger().waiting
    assert accepted == frames + 1
    assert waiting == frames
    assert used < 400_000
