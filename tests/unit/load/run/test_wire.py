"""Messages between a coordinator and its generators: whole ones, and all others."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from relay.load.actors.engine import Share, StatsUpdate
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.sent_files import SentFiles
from relay.load.measures import histogram
from relay.load.measures.generator_usage import GeneratorUsage
from relay.load.measures.histogram import HdrHistogram
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.stats import GroupStats
from relay.load.run import wire
from relay.load.run.run_state import RunState
from relay.load.run.wire import (
    Assignment,
    BadMessage,
    ClockProbe,
    MessagePipe,
    Order,
    Permit,
    StartSignal,
    StopSignal,
    UpdateMessage,
    encode_message,
)
from relay.load.scenario.parsing import parse_scenario

ASSIGNMENT = Assignment(
    source="[phones.p]",
    file="mine.toml",
    run="abcd1234",
    endpoint=Endpoint("ws://relay.test:3000", ("secret-1",), ("secret-2",)),
    shares=[Share(worker=1, of=3)],
    files=SentFiles({"door.trace": b"secret-3"}, {}, b"ACTORS = {}"),
    permit=Permit(targets=frozenset({"relay.test:3000"}), max_connections=3, max_rate=4.5),
)


def pipes() -> tuple[MessagePipe, trio.testing.MemorySendStream]:
    """A pipe, and what feeds it."""
    feed, incoming = trio.testing.memory_stream_one_way_pair()
    outgoing, _ = trio.testing.memory_stream_one_way_pair()
    return MessagePipe(incoming, outgoing), feed


def update() -> StatsUpdate:
    stats = GroupStats()
    stats.counts["received"] = 7
    stats.time("frame_age").record(0.25)
    usage = GeneratorUsage(seconds=1, busy=0.5)
    return StatsUpdate({"v": {"": stats.drain()}}, Observations(), "run", usage)


async def test_messages_arrive_as_they_were_sent_however_the_bytes_are_cut() -> None:
    orders: list[Order] = [ASSIGNMENT, StartSignal(1.5), ClockProbe(7), StopSignal()]
    pipe, feed = pipes()
    for byte in b"".join(encode_message(each) for each in orders):
        await feed.send_all(bytes([byte]))
    await feed.aclose()
    assert [await pipe.order() for _ in orders] == orders
    assert await pipe.order() is None


async def test_what_a_process_saw_arrives_with_its_histograms() -> None:
    pipe, feed = pipes()
    await feed.send_all(encode_message(UpdateMessage(update(), 3)))
    got = await pipe.statement()
    assert isinstance(got, UpdateMessage)
    assert got.process == 3
    assert got.update.usage.busy == 0.5
    again = GroupStats()
    again.add_delta(got.update.groups["v"][""])
    assert again.counts["received"] == 7
    assert again.time("frame_age").percentile(50) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", wire.MAX_WIRE_BYTES + 1),
        struct.pack(">I", 4) + b"\xc1\xff\x00\x01",
        struct.pack(">I", 5000) + b"\x91" * 5000,
        struct.pack(">I", 1) + b"\xc0",
        encode_message(UpdateMessage(update())),
        encode_message(StartSignal(1.0)).replace(b"StartSignal", b"StopTheWorl"),
    ],
)
async def test_what_is_no_order_is_refused(data: bytes) -> None:
    pipe, feed = pipes()
    await feed.send_all(data)
    with pytest.raises(BadMessage):
        await pipe.order()


async def test_a_message_that_ends_in_the_middle_is_the_end() -> None:
    for length in (1, 4, 9):
        pipe, feed = pipes()
        await feed.send_all(encode_message(StartSignal(1.0))[:length])
        await feed.aclose()
        assert await pipe.order() is None


async def test_an_order_may_be_no_larger_than_its_moment_allows() -> None:
    pipe, feed = pipes()
    await feed.send_all(encode_message(ASSIGNMENT))
    with pytest.raises(BadMessage):
        await pipe.order(max_bytes=64)


def test_a_message_that_nobody_would_take_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_WIRE_BYTES", 100)
    with pytest.raises(BadMessage, match="too large"):
        encode_message(ASSIGNMENT)


def test_an_assignment_shows_neither_tokens_nor_files() -> None:
    assert "secret" not in repr(ASSIGNMENT)


def test_a_small_message_cannot_unpack_to_a_huge_histogram() -> None:
    bomb = HdrHistogram(dict.fromkeys(range(0, 4_000_000, 2), 1)).encode()
    far = HdrHistogram({1 << 20: 1}).encode()
    for encoded in (bomb, far):
        with pytest.raises(ValueError, match="not a histogram"):
            HdrHistogram.decode(encoded)
    largest = HdrHistogram()
    largest.record(1 << 62)
    assert HdrHistogram.decode(largest.encode()).counts == largest.counts


def test_a_number_without_an_end_is_refused_at_once() -> None:
    content = b"\xff" * 500_000
    packed = zlib.compress(
        histogram._HEADER.pack(histogram._COOKIE, len(content), 0, histogram.DIGITS, 1, 1, 1.0)
        + content
    )
    outer = histogram._OUTER.pack(histogram._COMPRESSED_COOKIE, len(packed))
    with pytest.raises(ValueError, match="a number that is too large"):
        HdrHistogram.decode(base64.b64encode(outer + packed).decode())


@pytest.mark.parametrize("is_time", [False, True])
def test_a_name_that_terminals_would_obey_is_refused(is_time: bool) -> None:
    state = RunState(parse_scenario("[phones.v]", "mine.toml", Path()))
    delta, name = update().groups["v"][""], "ended.\x1b[2J"
    bad = evolve(delta, counts={name: 1})
    if is_time:
        bad = evolve(delta, times={name: delta.times["frame_age"]})
    with pytest.raises(ValueError, match="cannot be shown"):
        state.add("b.test:3100", evolve(update(), groups={"v": {"": bad}}))
