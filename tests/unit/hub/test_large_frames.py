"""A large frame is encoded in steps for each kind of viewer, and is the same for all."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from attrs import evolve

from relay.concurrency import time_slice
from relay.hub.frames.frame import Frame
from relay.hub.frames.frame_budget import FrameBudget
from relay.hub.ledger import Drop
from relay.hub.stream import Stream
from relay.protocol.codec import CODECS, JSON_CODEC, MSGPACK_CODEC
from relay.protocol.messages import VideoFrame
from relay.transport.budget import Budget
from tests.unit.hostile import masked_frame
from tests.unit.memory import ANN, Client, MemoryRelay, open_relay

pytestmark = pytest.mark.mock_clock

CONTENT = os.urandom(1_600_000)
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])


@pytest.fixture
async def relay() -> AsyncIterator[MemoryRelay]:
    async with open_relay() as relay:
        relay.timing = evolve(relay.timing, max_message_size=16 << 20)
        relay.budget = Budget(64 << 20)
        yield relay


def frame_message(*, packed: bool, content: bytes = CONTENT) -> bytes:
    fields = {"type": "video-frame", "metadata": {"a": 1}}
    if packed:
        message: bytes = msgpack.packb({**fields, "data": content})
        return message
    return json.dumps({**fields, "data": base64.b64encode(content).decode()}).encode()


@PACKED
@pytest.mark.parametrize("more", [0, 1, 2, 3])
async def test_steps_lead_to_the_same_bytes(packed: bool, more: int) -> None:
    codec = MSGPACK_CODEC if packed else JSON_CODEC
    message = codec.decode(frame_message(packed=packed, content=CONTENT[: 1_400_000 + more]))
    assert isinstance(message, VideoFrame)
    stepwise, at_once = (Frame("front-door", 1, 1, 1.0, message, codec) for _ in range(2))
    for other in CODECS.values():
        for in_parts in (False, True):
            assert len(list(stepwise.encode_in_steps(other, in_parts=in_parts))) >= 1
        done = stepwise._encoded[other], stepwise._parts[other]  # type: ignore[index]
        assert (stepwise.encoded(other), stepwise.parts(other)) == done
        assert done == (at_once.encoded(other), at_once.parts(other))
    assert stepwise.total_size == at_once.total_size


async def viewer(relay: MemoryRelay, *, msgpack: bool, **asks: Any) -> Client:
    client = await relay.open(msgpack=msgpack)
    await client.ask({"type": "auth", "token": ANN, **asks})
    request = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    await client.ask(request)
    return client


async def has_begun(stream: Stream) -> None:
    """Wait until the stream has accepted a frame."""
    for _ in range(1000):
        if stream.seq:
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("no frame was accepted")


@PACKED
async def test_others_go_on_while_a_large_frame_is_encoded(
    relay: MemoryRelay, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    phone = await relay.phone(msgpack=packed)
    viewers = [await viewer(relay, msgpack=kind) for kind in (False, True)]
    await viewer(relay, msgpack=not packed, parts=True)
    stream = relay.hub._streams["front-door"]
    await phone.send(frame_message(packed=True) if packed else frame_text())
    await has_begun(stream)
    turns = 0
    while stream.fanout.keyframe is None:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert turns > 50
    for client in viewers:
        data = (await client.receive_type("video-frame"))["data"]
        assert (data if client.msgpack else base64.b64decode(data)) == CONTENT


def frame_text() -> str:
    return frame_message(packed=False).decode()


async def test_a_large_frame_of_a_life_that_ends_meanwhile_reaches_nobody(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    phone, next_phone = await relay.phone(), await relay.login()
    packed = await viewer(relay, msgpack=True)
    stream = relay.hub._streams["front-door"]
    await phone.send(frame_text())
    await has_begun(stream)
    await next_phone.ask({"type": "register", "streamId": "front-door"})
    await next_phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await packed.receive_type("video-frame"))["data"] == bytes(3)


async def test_a_lossless_viewer_ends_that_misses_a_large_frame_of_who_was_taken_over(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    phone, next_phone = await relay.phone(), await relay.login()
    lossless = await relay.login(msgpack=True)
    request = {"type": "subscribe", "streamId": "front-door", "policy": "lossless"}
    await lossless.ask({**request, "consumes": ["video-frame"]})
    stream = relay.hub._streams["front-door"]
    await phone.send(frame_text())
    await has_begun(stream)
    await next_phone.ask({"type": "register", "streamId": "front-door"})
    error, close = await lossless.hear_end()
    assert (error["code"], close[0]) == ("TOO_SLOW", 4002)


async def test_others_go_on_between_frames_with_much_metadata_that_came_together(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    phone = await relay.phone(msgpack=True)
    await viewer(relay, msgpack=False)
    stream = relay.hub._streams["front-door"]
    frame = {
        "type": "video-frame",
        "data": b"AAA",
        "metadata": {"a": [[]] * 2000, "b": "x" * 40_000},
    }
    phone.link.outgoing.capacity = 1 << 20
    await phone.send_bytes(masked_frame(2, msgpack.packb(frame)) * 4)
    seen = set()
    for _ in range(10_000):
        await trio.lowlevel.checkpoint()
        seen.add(stream.seq)
    assert stream.seq == 4
    assert len(seen - {0}) > 1


async def ask_late(relay: MemoryRelay, *, msgpack: bool, **asks: Any) -> Client:
    """A viewer that subscribes and reads nothing yet."""
    client = await relay.open(msgpack=msgpack)
    await client.ask({"type": "auth", "token": ANN, **asks})
    await client.send(
        {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"], "id": 1}
    )
    return client


def data_of(frame: dict[str, Any], client: Client) -> bytes:
    return frame["data"] if client.msgpack else base64.b64decode(frame["data"])


@PACKED
@pytest.mark.parametrize("forgotten", [False, True])
async def test_others_go_on_while_a_large_frame_is_encoded_for_who_comes_late(
    relay: MemoryRelay, packed: bool, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = await relay.phone(msgpack=packed)
    await phone.send(frame_message(packed=True) if packed else frame_text())
    stream = relay.hub._streams["front-door"]
    await trio.testing.wait_all_tasks_blocked()
    frame = stream.fanout.keyframe
    assert frame is not None
    if forgotten:
        early = await viewer(relay, msgpack=not packed)
        await early.receive_type("video-frame")
        frame.forget_encodings()
    begun, at_once = [0], Frame.encoded

    def encode(self: Frame, codec: Any) -> Any:
        begun[0] += not self.is_encoded(codec, in_parts=False)
        return at_once(self, codec)

    monkeypatch.setattr(Frame, "encoded", encode)
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    late = [await ask_late(relay, msgpack=not packed) for _ in range(3)]
    for client in late:
        assert data_of(await client.receive_type("video-frame"), client) == CONTENT
    assert begun == [0]
    assert frame.total_size - frame.size < 2.5 * len(CONTENT)  # encoded once for all three


@PACKED
async def test_who_comes_late_gets_all_parts_of_a_large_frame_and_only_these_are_encoded(
    relay: MemoryRelay, packed: bool
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    frame = relay.hub._streams["front-door"].fanout.keyframe
    assert frame is not None
    late = await ask_late(relay, msgpack=packed, parts=True)
    parts: list[dict[str, Any]] = []
    while len(parts) < 2 or len(parts) < parts[0]["count"]:
        message = await late.receive()
        if message["type"] == "part":
            parts.append(message)
    join = b"".join if packed else "".join
    whole = join(part["data"] for part in parts)
    read = msgpack.unpackb(whole) if packed else json.loads(whole)
    assert data_of(read, late) == CONTENT
    codec = MSGPACK_CODEC if packed else JSON_CODEC
    assert frame.is_encoded(codec, in_parts=True)
    assert not frame.is_encoded(codec, in_parts=False)  # nobody wants that


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """While `on`, the encoding of large frames goes on and on; `begun` says that it does."""
    held, steps = {"on": True, "begun": False}, Frame.encode_in_steps

    def encode(self: Frame, codec: Any, *, in_parts: bool) -> Iterator[None]:
        while held["on"]:
            held["begun"] = True
            yield
        yield from steps(self, codec, in_parts=in_parts)

    monkeypatch.setattr(Frame, "encode_in_steps", encode)
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    return held


async def happens(what: Callable[[], bool]) -> None:
    """Wait for something while an encoding goes on and on."""
    for _ in range(100_000):
        if what():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it did not happen")


async def test_a_viewer_that_leaves_while_its_frame_is_encoded_gets_none(
    relay: MemoryRelay, held: dict[str, bool]
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    late = await ask_late(relay, msgpack=True)
    await happens(lambda: held["begun"])
    await late.send({"type": "unsubscribe", "streamId": "front-door", "id": 2})
    await late.send({"type": "subscribe", "streamId": "front-door", "consumes": [], "id": 3})
    stream = relay.hub._streams["front-door"]
    await happens(lambda: relay.hub.totals.consumers == 1 and not stream.fanout.audience)
    held["on"] = False
    await late.send({"type": "unsubscribe", "streamId": "front-door", "id": 4})
    types = []
    while True:
        message = await late.receive()
        types.append(message["type"])
        if message.get("id") == 4:
            break
    assert "video-frame" not in types
    assert relay.hub.totals.waiting == 0
    assert relay.hub.totals.frames.dropped[Drop.LEFT] == 1


@pytest.mark.parametrize("policy", ["latest", "lossless"])
async def test_the_next_life_of_a_stream_goes_before_a_frame_that_is_being_encoded(
    relay: MemoryRelay, held: dict[str, bool], policy: str
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    late = await relay.open(msgpack=True)
    await late.ask({"type": "auth", "token": ANN})
    subscribe = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    await late.send({**subscribe, "policy": policy})
    await happens(lambda: held["begun"])
    stream = relay.hub._streams["front-door"]
    assert stream.producer is not None
    relay.hub.release(stream, stream.producer, at_once=True)
    next_phone = await relay.login()
    await next_phone.ask({"type": "register", "streamId": "front-door"})
    await next_phone.send({"type": "video-frame", "data": "AAAA"})
    held["on"] = False
    if policy == "lossless":
        assert (await late.receive_type("error"))["code"] == "TOO_SLOW"
    else:
        assert (await late.receive_type("video-frame"))["data"] == bytes(3)
        await next_phone.send({"type": "video-frame", "data": "BBBB", "keyframe": False})
        assert len((await late.receive_type("video-frame"))["data"]) == 3


def check_balance(relay: MemoryRelay) -> None:
    """Check that the outcome of each frame is known, in the totals and for each consumer."""
    totals = relay.hub.ledger()
    counts = [(totals.accepted, totals.written, totals.dropped, totals.waiting)]
    for stream in relay.hub.figures().streams:
        counts += [(c.frames, c.written, c.dropped, c.waiting) for c in stream.consumers]
    for accepted, written, dropped, waiting in counts:
        assert accepted == written + sum(dropped.values()) + waiting


async def test_a_frame_that_is_being_encoded_waits(
    relay: MemoryRelay, held: dict[str, bool]
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    late = await ask_late(relay, msgpack=True)
    await happens(lambda: held["begun"])
    check_balance(relay)
    held["on"] = False
    await late.receive_type("video-frame")
    check_balance(relay)


async def test_who_is_gone_while_its_frame_is_encoded_has_left(
    relay: MemoryRelay, held: dict[str, bool]
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    late = await ask_late(relay, msgpack=True)
    await happens(lambda: held["begun"])
    late.link.close()
    await happens(lambda: relay.hub.totals.consumers == 0)
    check_balance(relay)
    assert relay.hub.totals.waiting == 0


async def test_who_may_see_a_stream_again_begins_anew_though_its_frame_was_being_encoded(
    relay: MemoryRelay, held: dict[str, bool]
) -> None:
    phone = await relay.phone()
    await phone.send(frame_text())
    await trio.testing.wait_all_tasks_blocked()
    late = await relay.open(msgpack=True)
    await late.ask({"type": "auth", "token": ANN})
    subscribe = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    await late.send({**subscribe, "policy": "lossless"})
    await happens(lambda: held["begun"])
    stream = relay.hub._streams["front-door"]
    [consumer] = stream.watchers
    stream.conceal(consumer)
    stream.reveal(consumer)
    held["on"] = False
    assert (await late.receive_type("video-frame"))["data"] == CONTENT
    assert relay.connections[-1].peer.ending is None
    check_balance(relay)


async def test_no_delta_goes_out_behind_a_large_keyframe_that_the_viewer_cannot_get(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    malformed = {"type": "video-frame", "keyframe": True, "data": "!" * (2 << 20)}
    await phone.send(malformed)
    await trio.testing.wait_all_tasks_blocked()
    late = await relay.open(msgpack=True, capacity=1000)
    await late.ask({"type": "auth", "token": ANN})
    # Its link is full, so that it takes a while until the writer looks at the frame.
    for number in range(20):
        await late.send({"type": "streams", "id": number})
    subscribe = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}
    await late.send({**subscribe, "policy": "lossless"})
    await trio.testing.wait_all_tasks_blocked()
    await phone.send({"type": "video-frame", "keyframe": False, "data": "AAAA"})
    await trio.testing.wait_all_tasks_blocked()
    await phone.send({"type": "video-frame", "keyframe": True, "data": "AAAA"})
    assert (await late.receive_type("video-frame"))["keyframe"] is True
    check_balance(relay)


async def test_what_is_encoded_for_who_comes_late_stays_within_the_budget(
    relay: MemoryRelay, held: dict[str, bool]
) -> None:
    limit = 8 * len(CONTENT)
    relay.hub.frame_budget = FrameBudget(3 * limit, limit)
    subscribe = {"type": "subscribe", "consumes": ["video-frame"]}
    for number in range(5):
        phone = await relay.phone(f"cam-{number}")
        await phone.send(frame_text())
    viewers = [await relay.login(msgpack=packed) for packed in (False, True) * 5]
    for number, viewer in enumerate(viewers):
        await viewer.send({**subscribe, "streamId": f"cam-{number // 2}"})
    await happens(lambda: relay.hub.totals.waiting == len(viewers))
    held["on"] = False
    await happens(lambda: relay.hub.totals.waiting == 0)
    for viewer in viewers:
        viewer.link.close()
    await trio.testing.wait_all_tasks_blocked()
    kept = relay.hub.frame_budget.bytes
    assert kept <= limit


async def test_one_large_frame_of_an_owner_is_encoded_at_a_time(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_slice, "TIME_SLICE", 0.0)
    under_way, most, steps = [0], [0], Frame.encode_in_steps

    def encode(self: Frame, codec: Any, *, in_parts: bool) -> Iterator[None]:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        try:
            yield from steps(self, codec, in_parts=in_parts)
        finally:
            under_way[0] -= 1

    monkeypatch.setattr(Frame, "encode_in_steps", encode)
    viewers = []
    for number in range(3):
        phone = await relay.phone(f"cam-{number}")
        await phone.send(frame_text())
        viewers.append(await relay.login(msgpack=True))
    for number, client in enumerate(viewers):
        subscribe = {"type": "subscribe", "consumes": ["video-frame"]}
        await client.send({**subscribe, "streamId": f"cam-{number}"})
    for client in viewers:
        assert data_of(await client.receive_type("video-frame"), client) == CONTENT
    assert most == [1]
