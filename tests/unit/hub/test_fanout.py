"""A fan-out gives frames to an audience, wherever they were accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relay.hub import fanout as fanout_module
from relay.hub.fanout import SLICE, FanOut
from relay.hub.frames.frame import Frame
from relay.hub.ledger import Totals
from relay.hub.stream import Stream
from relay.protocol.codec import JSON_CODEC
from relay.protocol.messages import VideoFrame
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


def frame(seq: int, *, keyframe: bool | None = None) -> Frame:
    """A frame as another node may have numbered it."""
    message = VideoFrame(data=msgspec.Raw(b'"QUJD"'), keyframe=keyframe)
    return Frame("front-door", seq, 1_700_000_000_000, trio.current_time(), message, JSON_CODEC)


def stream_of(relay: MemoryRelay) -> Stream:
    (stream,) = relay.hub._streams.values()
    return stream


async def seqs(viewer: Client, count: int) -> list[int]:
    return [(await viewer.receive_type("video-frame"))["seq"] for _ in range(count)]


async def test_frames_reach_the_audience_though_no_producer_here_sent_them(
    relay: MemoryRelay,
) -> None:
    await relay.phone()
    viewers = [await relay.viewer(), await relay.viewer(msgpack=True)]
    fanout = stream_of(relay).fanout
    await fanout.publish([frame(41)])
    await fanout.publish([frame(42), frame(43)])
    assert [await seqs(viewer, 3) for viewer in viewers] == [[41, 42, 43]] * 2


async def test_a_newcomer_begins_with_the_last_frame_that_stands_for_itself(
    relay: MemoryRelay,
) -> None:
    await relay.phone()
    await relay.viewer()
    fanout = stream_of(relay).fanout
    await fanout.publish([frame(7, keyframe=True), frame(8, keyframe=False)])
    newcomer = await relay.viewer()
    await fanout.publish([frame(9, keyframe=False), frame(10, keyframe=True)])
    assert await seqs(newcomer, 2) == [7, 10]


async def test_after_frames_are_forgotten_a_newcomer_waits_for_the_next(relay: MemoryRelay) -> None:
    await relay.phone()
    await relay.viewer()
    fanout = stream_of(relay).fanout
    await fanout.publish([frame(1)])
    fanout.forget_frames()
    newcomer = await relay.viewer()
    await fanout.publish([frame(2)])
    assert await seqs(newcomer, 1) == [2]


async def test_a_large_audience_is_served_in_slices_and_busy_meanwhile(relay: MemoryRelay) -> None:
    await relay.phone()
    viewers = [await relay.viewer() for _ in range(3 * SLICE)]
    fanout = stream_of(relay).fanout
    looks: list[bool] = []

    async def look() -> None:
        while not looks or fanout.busy:
            looks.append(fanout.busy)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.publish, [frame(1)])
        nursery.start_soon(look)
    assert any(looks)
    assert not fanout.busy
    assert [await seqs(viewer, 1) for viewer in viewers] == [[1]] * len(viewers)


async def test_a_publish_that_is_under_way_can_be_waited_for(relay: MemoryRelay) -> None:
    await relay.phone()
    for _ in range(2 * SLICE):
        await relay.viewer()
    fanout = stream_of(relay).fanout
    done: list[str] = []

    async def note(name: str, wait: Callable[[], Awaitable[object]]) -> None:
        await wait()
        done.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, "published", lambda: fanout.publish([frame(1)]))
        await trio.lowlevel.checkpoint()
        nursery.start_soon(note, "waited", fanout.wait_until_idle)
    await wait_all_tasks_blocked()
    assert done == ["published", "waited"]


async def test_an_audience_that_is_empty_costs_no_offer(relay: MemoryRelay) -> None:
    fanout = FanOut(relay.metrics, Totals())
    await fanout.publish([frame(1)])
    assert not fanout.busy


async def test_the_ledgers_of_all_consumers_add_up_to_that_of_the_relay(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    for msgpack in (False, True):
        await relay.viewer(msgpack=msgpack)
        await relay.viewer(msgpack=msgpack, maxFps=0.001)
        await relay.viewer(msgpack=msgpack, window=2)
        await relay.viewer(msgpack=msgpack, capacity=600)
        await relay.viewer(msgpack=msgpack, capacity=600, policy="lossless")
    consumers = list(stream_of(relay).watchers)
    for size, keyframe in ((100, True), (100, False), (2000, False), (70_000, True), (9, False)):
        for _ in range(3):
            frame = {"type": "video-frame", "keyframe": keyframe, "data": "AAAA" * (size // 4)}
            await phone.send(frame)
            await wait_all_tasks_blocked()
            totals = relay.hub.ledger()
            ledgers = [consumer.ledger for consumer in consumers]
            assert totals.accepted == sum(each.accepted for each in ledgers)
            assert totals.written == sum(each.written for each in ledgers)
            for each, consumer in zip(ledgers, consumers, strict=True):
                dropped = sum(each.dropped.values())
                assert each.accepted == each.written + dropped + consumer.waiting_frames
    assert len(stream_of(relay).watchers) < len(consumers)  # lossless ones that stalled
    assert 0 < totals.written < totals.accepted


async def publish_to_the_first(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> tuple[Client, trio.Event]:
    """Publish a frame to three viewers. It has reached the first of them, and goes on when the
    event is set; returns the last one."""
    go_on = trio.Event()
    monkeypatch.setattr(fanout_module, "SLICE", 1)
    monkeypatch.setattr(FanOut, "pause", lambda _self: go_on.wait())
    phone = await relay.phone()
    viewers = [await relay.viewer() for _ in range(3)]
    await phone.send({"type": "video-frame", "data": "AAAA"})
    await wait_all_tasks_blocked()
    assert relay.hub.totals.frames.written == 1
    return viewers[-1], go_on


async def received(viewer: Client) -> list[tuple[str, object]]:
    """What comes before nothing comes for a while: the frames by `seq`, the rest by status."""
    messages: list[tuple[str, object]] = []
    while True:
        with trio.move_on_after(1) as scope:
            message = await viewer.receive()
            messages.append((message["type"], message.get("seq", message.get("status"))))
        if scope.cancelled_caught:
            return messages


async def test_no_frame_of_a_stream_that_has_ended_comes_in_its_next_epoch(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, go_on = await publish_to_the_first(relay, monkeypatch)
    stream = stream_of(relay)
    producer = stream.producer
    assert producer is not None
    relay.hub.release(stream, producer, at_once=True)
    relay.hub.register("front-door", "ann", producer, None)
    go_on.set()
    messages = await received(last)
    assert messages[-1] == ("status", "online")
    assert "video-frame" not in dict(messages)


async def test_who_may_see_a_stream_again_during_a_publish_gets_its_frame_once(
    relay: MemoryRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, go_on = await publish_to_the_first(relay, monkeypatch)
    stream = stream_of(relay)
    consumer = list(stream.watchers)[-1]
    stream.conceal(consumer)
    stream.reveal(consumer)
    go_on.set()
    messages = await received(last)
    assert messages.count(("video-frame", 1)) == 1
