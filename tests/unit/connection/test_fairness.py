"""Turns: nobody, by a large audience or by a flood, holds up the others for long.

Trio gives every task that can go on one turn in each round of its loop, in any order. So what
happens between two turns of a task that waits for nothing, in which any other has two at most, is
what delays everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from relay.hub.fanout import SLICE
from relay.protocol.endings import Ending
from relay.transport.framing.frame_parser import MAX_FRAMES_PER_FEED, MAX_MESSAGES_PER_FEED
from relay.transport.stream import MAX_READS_IN_A_ROW
from relay.transport.wire import BINARY, CONTINUATION, PING, TEXT
from tests.unit.hostile import masked_frame
from tests.unit.memory import MemoryLink, MemoryRelay

pytestmark = pytest.mark.mock_clock

READ = 256 * 1024
"""Bytes that one read of an authenticated peer may bring."""
FLOOD = 64 * READ
MAX_UNITS = 50_000
"""A flood of small messages is no larger than this."""


@define(eq=False)
class Turns:
    """Looks at a number once in each round of Trio's loop."""

    look: Callable[[], int]
    steps: list[int] = field(factory=list)
    """By how much it grew between two turns."""

    @property
    def longest(self) -> int:
        return max(self.steps)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        before = self.look()
        task_status.started()
        while True:
            await trio.lowlevel.checkpoint()
            now = self.look()
            self.steps.append(now - before)
            before = now


@asynccontextmanager
async def taking_turns(look: Callable[[], int]) -> AsyncIterator[Turns]:
    turns = Turns(look)
    async with trio.open_nursery() as nursery:
        await nursery.start(turns.run)
        yield turns
        nursery.cancel_scope.cancel()


def video(size: int) -> bytes:
    text = b'{"type": "video-frame", "data": "%s"}' % (b"A" * size)
    return masked_frame(TEXT, text)


def link_of(relay: MemoryRelay, number: int) -> MemoryLink:
    link = relay.connections[number]._stream.link
    assert isinstance(link, MemoryLink)
    return link


def pour(relay: MemoryRelay, number: int, data: bytes) -> MemoryLink:
    """Put bytes into the link of a connection, as if a fast network had brought them at once."""
    link = link_of(relay, number)
    link.incoming.content += data
    link.incoming.changed.unpark_all()
    return link


async def until(so: Callable[[], bool]) -> None:
    """Take turns until something is so."""
    for _ in range(100_000):
        if so():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("that took too many turns")


def offers(relay: MemoryRelay) -> int:
    return relay.hub.ledger().accepted


def flood_of(unit: bytes) -> bytes:
    return unit * min(FLOOD // len(unit), MAX_UNITS)


# -- a large audience


async def crowd(relay: MemoryRelay, stream_id: str, size: int) -> None:
    for _ in range(size):
        await relay.viewer(stream_id)


@pytest.mark.parametrize("viewers", [5 * SLICE, pytest.param(1000, marks=pytest.mark.slow)])
async def test_a_publish_to_many_gives_others_their_turns_at_every_slice(
    relay: MemoryRelay, viewers: int
) -> None:
    phone = await relay.phone()
    await crowd(relay, "front-door", viewers)
    async with taking_turns(lambda: offers(relay)) as turns:
        await phone.send({"type": "video-frame", "data": "A" * 100})
        await until(lambda: offers(relay) == viewers)
    assert turns.longest <= 2 * SLICE


async def test_a_small_stream_is_served_in_the_middle_of_a_publish_to_many(
    relay: MemoryRelay,
) -> None:
    phone, small = await relay.phone(), await relay.phone("small")
    await crowd(relay, "front-door", 10 * SLICE)
    viewer = await relay.viewer("small")
    await phone.send({"type": "video-frame", "data": "A" * 100})
    await until(lambda: offers(relay) > 0)
    await small.send({"type": "video-frame", "data": "A" * 100})
    await viewer.receive_type("video-frame")
    # It is read and written, and the client has its turns, to answer a ping, too: few slices each.
    assert offers(relay) <= 8 * SLICE


async def test_a_small_stream_waits_a_slice_for_each_large_one(relay: MemoryRelay) -> None:
    """However many viewers those have."""
    phones = [await relay.phone(str(each)) for each in range(3)]
    for each in range(3):
        await crowd(relay, str(each), 4 * SLICE)
    async with taking_turns(lambda: offers(relay)) as turns:
        for phone in phones:
            await phone.send({"type": "video-frame", "data": "A" * 100})
        await until(lambda: offers(relay) == 3 * 4 * SLICE)
    assert turns.longest <= 2 * 3 * SLICE


@pytest.mark.parametrize("size", [1, 100, 3000])
async def test_frames_that_come_together_count_one_by_one(relay: MemoryRelay, size: int) -> None:
    await relay.phone()
    await crowd(relay, "front-door", SLICE // 4)
    async with taking_turns(lambda: offers(relay)) as turns:
        pour(relay, 0, video(size) * 300)
        await until(lambda: offers(relay) == 300 * SLICE // 4)
    assert turns.longest <= 2 * 2 * SLICE


# -- a flood


FLOODS = {
    "small frames": video(1),
    "frames of 16 KiB": video(16 * 1024),
    "frames of 900 KiB": video(900 * 1024),
    "requests": masked_frame(TEXT, b'{"type": "ack", "streamId": "x", "seq": 1}'),
}
TINY = {
    "pings": masked_frame(PING),
    "fragments": masked_frame(CONTINUATION, final=False),
    "fragments of a byte": masked_frame(CONTINUATION, b" ", final=False),
}
"""Frames of which a read brings tens of thousands, and none of them a message."""


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("name", FLOODS)
async def test_of_a_flood_little_is_taken_between_two_turns(
    relay: MemoryRelay, name: str, watched: bool
) -> None:
    relay.budget.limit = 16 << 20
    await relay.phone()
    if watched:
        await relay.viewer()
    unit = FLOODS[name]
    link = link_of(relay, 0)
    async with taking_turns(lambda: -len(link.incoming.content)) as turns:
        await trio.lowlevel.checkpoint()
        pour(relay, 0, flood_of(unit))
        await until(lambda: not link.incoming.content)
    taken = [step for step in turns.steps if step > 0]
    assert max(taken) <= 2 * MAX_READS_IN_A_ROW * max(READ, len(unit))
    assert len(taken) > 4
    assert relay.connections[0].peer.ending is None


@pytest.mark.parametrize("watched", [True, False])
async def test_of_a_flood_few_messages_are_handled_between_two_turns(
    relay: MemoryRelay, watched: bool
) -> None:
    await relay.phone()
    if watched:
        await relay.viewer()
    async with taking_turns(lambda: relay.metrics.frames_accepted) as turns:
        pour(relay, 0, video(1) * 10_000)
        await until(lambda: relay.metrics.frames_accepted == 10_000)
    assert turns.longest <= 2 * (SLICE + MAX_MESSAGES_PER_FEED)


@pytest.mark.parametrize("name", TINY)
async def test_of_a_flood_of_tiny_frames_few_are_looked_at_between_two_turns(
    relay: MemoryRelay, name: str
) -> None:
    viewer = await relay.viewer()
    await relay.phone()
    await viewer.receive_type("status")
    tiny, number = TINY[name], 100_000
    begin = masked_frame(TEXT, b'{"type":"video-frame","data":""', final=False)
    end = masked_frame(CONTINUATION, b"}")
    async with taking_turns(lambda: relay.metrics.frames_accepted) as turns:
        pour(relay, 1, begin + tiny * number + end)
        await until(lambda: relay.metrics.frames_accepted == 1)
    assert len(turns.steps) >= number / (MAX_READS_IN_A_ROW * MAX_FRAMES_PER_FEED)


@pytest.mark.parametrize("name", FLOODS)
async def test_beside_a_flood_another_stream_goes_on(relay: MemoryRelay, name: str) -> None:
    relay.budget.limit = 16 << 20
    await relay.phone("flood")
    await relay.viewer("flood")
    phone, viewer = await relay.phone("small"), await relay.viewer("small")
    unit = FLOODS[name]
    link = pour(relay, 0, flood_of(unit))
    for seq in range(1, 11):
        before = len(link.incoming.content)
        await phone.send({"type": "video-frame", "data": "A" * 100})
        assert (await viewer.receive_type("video-frame"))["seq"] == seq
        # That took a few turns, in each of which the flood had its own.
        taken = before - len(link.incoming.content)
        assert taken <= 16 * MAX_READS_IN_A_ROW * max(READ, len(unit))


# -- costly messages


async def test_costly_messages_that_arrive_together_leave_turns_to_others(
    relay: MemoryRelay,
) -> None:
    await relay.phone(msgpack=True)
    values = msgpack.packb({"type": "video-frame", "data": b"", "metadata": {"a": [0] * 4000}})
    costly = masked_frame(BINARY, values)
    async with taking_turns(lambda: 0) as turns:
        before = len(turns.steps)
        pour(relay, 0, costly * 60)  # one read
        await until(lambda: relay.metrics.frames_accepted == 60)
    assert len(turns.steps) - before > 6


async def test_a_large_frame_is_decoded_in_steps(relay: MemoryRelay) -> None:
    relay.timing = evolve(relay.timing, max_message_size=16 << 20)
    relay.budget.limit = 64 << 20
    await relay.phone()
    lines = "\\n".join(["A" * 76] * 100_000)
    text = f'{{"type": "video-frame", "data": "{lines}"}}'.encode()
    async with taking_turns(lambda: 0) as turns:
        pour(relay, 0, masked_frame(TEXT, text))
        await until(lambda: relay.metrics.frames_accepted == 1)
    reads = len(text) // READ // MAX_READS_IN_A_ROW
    assert len(turns.steps) > reads + 5


@pytest.mark.parametrize("end", ["\u00e9".encode(), b"\xc3", b"\xff"])
async def test_a_large_text_is_checked_to_be_utf8(relay: MemoryRelay, end: bytes) -> None:
    relay.timing = evolve(relay.timing, max_message_size=16 << 20)
    relay.budget.limit = 64 << 20
    await relay.phone()
    peer = relay.connections[0].peer
    text = '{"type": "video-frame", "metadata": {"a": "\u00e9"}, "data": "'.encode()
    text += b"A" * 400_000 + b'", "unknown": "' + end + b'"}'
    pour(relay, 0, masked_frame(TEXT, text))
    if end == "\u00e9".encode():
        await until(lambda: relay.metrics.frames_accepted == 1)
    else:
        await until(lambda: peer.ending is not None)
        assert peer.ending is Ending.NOT_UTF8
