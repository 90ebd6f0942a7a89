"""Streams that come and go are told of once, whatever happens to those who tell."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, field

from relay.alerts.stream_events import (
    OWNER_BURST,
    OWNER_RATE,
    SOURCE_BEAT_INTERVAL,
    SOURCE_TIMEOUT,
    UNWANTED_INTERVAL,
    StreamEventRecorder,
)
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.errors import StoreUnavailable
from relay.model.targets.stream_event import StreamPresence
from tests.presence_table import PresenceTable

pytestmark = pytest.mark.mock_clock

GRACE = 5.0
SOON = 0.5


@define(eq=False)
class Process:
    """A relay with streams, whose hub tells the recorder of them."""

    table: PresenceTable
    activity: Activity = field(factory=always_active)
    streams: dict[str, StreamPresence] = field(factory=dict)
    recorder: StreamEventRecorder = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.recorder = StreamEventRecorder(
            self.table, lambda: [*self.streams.values()], GRACE, self.activity
        )

    def set(
        self, stream_id: str, *, online: bool = True, watched: bool = False, term: int = 0
    ) -> None:
        presence = StreamPresence(stream_id, "ann", 7, term, online, watched)
        self.streams.pop(stream_id, None)
        if online:
            self.streams[stream_id] = presence
        self.recorder.note(stream_id, presence)

    def move_away(self, stream_id: str) -> None:
        self.streams.pop(stream_id, None)
        self.recorder.note(stream_id, None)


@asynccontextmanager
async def running(*processes: Process) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for each in processes:
            await nursery.start(each.recorder.run)
        await trio.sleep(SOON)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def table() -> PresenceTable:
    return PresenceTable()


@pytest.fixture
def relay(table: PresenceTable) -> Process:
    return Process(table)


async def test_each_change_is_told_once_and_soon(table: PresenceTable, relay: Process) -> None:
    async with running(relay):
        relay.set("door")
        await trio.sleep(SOON)
        assert table.events == ["door online"]
        relay.set("door", watched=True)
        await trio.sleep(SOON)
        assert table.events[1:] == ["door watched"]
        relay.set("door", watched=False)
        await trio.sleep(GRACE + SOON)
        assert table.events[2:] == ["door unwatched"]
        relay.set("door", watched=True)
        await trio.sleep(SOON)
        relay.set("door", online=False)
        await trio.sleep(SOON)
        assert table.events[3:] == ["door watched", "door unwatched", "door offline"]
        before = table.writes
        await trio.sleep(100)
        assert table.writes == before
        assert len(table.events) == 6


async def test_a_viewer_that_comes_back_within_the_grace_is_not_noticed(
    table: PresenceTable, relay: Process
) -> None:
    async with running(relay):
        relay.set("door", watched=True)
        await trio.sleep(SOON)
        for _ in range(10):
            relay.set("door", watched=False)
            await trio.sleep(GRACE - SOON)
            relay.set("door", watched=True)
            await trio.sleep(SOON)
        assert table.events == ["door online", "door watched"]
        relay.set("door", watched=False)
        await trio.sleep(GRACE - SOON)
        assert len(table.events) == 2
        await trio.sleep(2 * SOON)
        assert table.events[2:] == ["door unwatched"]


async def test_while_no_target_wants_events_nothing_is_stored(
    table: PresenceTable, relay: Process
) -> None:
    table.wanted = False
    async with running(relay):
        relay.set("door", watched=True)
        await trio.sleep(1000)
        assert (table.writes, table.events) == (0, [])
        assert table.beats <= 1000 / UNWANTED_INTERVAL + 2


async def test_what_was_so_before_there_was_a_target_is_not_told(
    table: PresenceTable, relay: Process
) -> None:
    table.wanted = False
    async with running(relay):
        relay.set("door", watched=True)
        await trio.sleep(SOON)
        table.wanted = True
        relay.recorder.look()
        await trio.sleep(SOON)
        assert table.events == []
        relay.set("gate")
        relay.set("door", online=False)
        await trio.sleep(SOON)
        assert sorted(table.events) == ["door offline", "door unwatched", "gate online"]
        table.wanted = False
        relay.recorder.look()
        await trio.sleep(SOON)
        assert table.told == {}
        relay.set("gate", online=False)
        await trio.sleep(SOON)
        assert len(table.events) == 3


async def test_a_change_while_the_first_streams_are_noted_is_not_lost(
    table: PresenceTable, relay: Process
) -> None:
    table.wanted = False
    async with running(relay):
        for stream_id in ("door", "gate"):
            relay.set(stream_id)
        await trio.sleep(SOON)
        table.wanted = True
        relay.recorder.look()
        while not table.writes:  # noqa: ASYNC110
            await trio.sleep(0.001)
        relay.set("door", online=False)
        relay.set("yard")
        await trio.sleep(SOON)
        assert sorted(table.events) == ["door offline", "yard online"]


async def test_streams_that_come_as_the_process_starts_are_told(table: PresenceTable) -> None:
    relay = Process(table)
    relay.set("door")  # before the first look
    async with running(relay):
        assert table.events == ["door online"]


async def test_a_process_that_is_started_again_makes_no_false_events(table: PresenceTable) -> None:
    first = Process(table)
    async with running(first):
        for stream_id in ("door", "gate"):
            first.set(stream_id, watched=True)
        await trio.sleep(SOON)
    told = list(table.events)
    assert len(told) == 4
    second = Process(table)
    async with running(second):
        await trio.sleep(3)
        second.set("door")
        await trio.sleep(GRACE - 1)
        second.set("door", watched=True)
        await trio.sleep(1)
        assert table.events == told
        await trio.sleep(SOURCE_TIMEOUT + 2 * SOURCE_BEAT_INTERVAL)
        assert table.events == [*told, "gate unwatched", "gate offline"]  # it did not come back


async def test_a_stream_that_moves_to_another_node_is_told_of_by_that_one(
    table: PresenceTable,
) -> None:
    one, other = Process(table), Process(table)
    async with running(one, other):
        one.set("door", watched=True, term=1)
        await trio.sleep(SOON)
        other.set("door", term=2)
        one.set("door", watched=False, term=1)  # its viewers go where the stream is
        await trio.sleep(0.05)
        one.move_away("door")
        await trio.sleep(1)
        other.set("door", watched=True, term=2)
        await trio.sleep(100)
        assert table.events == ["door online", "door watched"]
        one.set("door", online=False, term=1)  # what it says late counts for nothing
        one.set("door", term=1)
        await trio.sleep(SOON)
        assert len(table.events) == 2
        other.set("door", online=False, term=2)
        await trio.sleep(SOON)
        assert table.events[2:] == ["door unwatched", "door offline"]


async def test_the_streams_of_a_node_that_dies_are_told_to_be_offline_by_another_once(
    table: PresenceTable,
) -> None:
    others = Process(table), Process(table)
    async with running(*others):
        for number, each in enumerate(others):
            each.set(f"other-{number}")
        doomed = Process(table)
        async with running(doomed):
            doomed.set("door", watched=True)
            await trio.sleep(60)
            assert len(table.events) == 4
        await trio.sleep(SOURCE_TIMEOUT - 1)
        assert len(table.events) == 4
        await trio.sleep(2 * SOURCE_BEAT_INTERVAL + 1)
        assert table.events[4:] == ["door unwatched", "door offline"]
        await trio.sleep(100)
        assert len(table.events) == 6


async def test_an_outage_of_the_store_kills_nobody_and_what_is_so_afterwards_is_told(
    table: PresenceTable,
) -> None:
    one, other = Process(table), Process(table)
    async with running(one, other):
        one.set("door")
        other.set("gate")
        await trio.sleep(SOON)
        table.unreachable = {each.recorder._source for each in (one, other)}
        await trio.sleep(10 * SOURCE_TIMEOUT)
        one.set("door", online=False)
        one.set("yard")
        one.set("shed")
        one.set("shed", online=False)
        other.set("gate", online=False)
        other.set("gate")
        await trio.sleep(SOURCE_TIMEOUT)
        table.unreachable = {other.recorder._source}  # it comes back later
        await trio.sleep(SOURCE_TIMEOUT - SOURCE_BEAT_INTERVAL)
        table.unreachable = set()
        await trio.sleep(4 * SOURCE_BEAT_INTERVAL)
        assert sorted(table.events[2:]) == ["door offline", "yard online"]


async def test_a_process_that_was_taken_for_dead_tells_again_what_it_has(
    table: PresenceTable, relay: Process
) -> None:
    async with running(relay):
        relay.set("door", watched=True)
        await trio.sleep(SOON)
        await table.end_source(*table.sources.popitem()[:1], None)
        assert table.events[2:] == ["door unwatched", "door offline"]
        await trio.sleep(SOURCE_BEAT_INTERVAL + SOON)
        assert table.events[4:] == ["door online", "door watched"]


async def test_a_table_of_processes_that_was_emptied_makes_no_events(
    table: PresenceTable, relay: Process
) -> None:
    async with running(relay):
        relay.set("door", watched=True)
        relay.set("gate")
        await trio.sleep(SOON)
        table.sources.clear()
        table.query = lambda: None
        relay.set("gate", online=False)
        await trio.sleep(3 * SOURCE_BEAT_INTERVAL)
        assert sorted(table.events) == [
            "door online",
            "door watched",
            "gate offline",
            "gate online",
        ]


async def test_one_user_who_flaps_takes_a_bounded_number_of_events(
    table: PresenceTable, relay: Process
) -> None:
    async with running(relay):
        ids = [f"door-{number}" for number in range(50)]
        for _ in range(100):
            for online in (True, False):
                for stream_id in ids:
                    relay.set(stream_id, online=online)
                await trio.sleep(0.15)
        assert OWNER_BURST < len(table.events) < OWNER_BURST + 35 * OWNER_RATE
        await trio.sleep(30)
        assert table.told == {}


async def test_while_nobody_is_connected_a_database_may_sleep(table: PresenceTable) -> None:
    relay = Process(table, Activity())
    async with running(relay):
        await trio.sleep(REST_INTERVAL)
        before = table.beats
        await trio.sleep(10 * REST_INTERVAL)
        assert table.beats - before <= 11
        relay.activity.note(active=True)
        relay.set("door")
        await trio.sleep(SOON)
        assert table.events == ["door online"]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_stream_is_told_by_turns_and_as_it_is_in_the_end(
    table: PresenceTable, seed: int
) -> None:
    """Answers get lost, and streams move and come and go while they are told."""
    chance = random.Random(seed)

    def unreliable() -> None:
        if chance.random() < 0.2:
            raise StoreUnavailable

    table.query = table.answer = unreliable
    nodes, term = [Process(table) for _ in range(3)], 0
    ids = [f"s{number}" for number in range(4)]
    where: dict[str, Process | None] = dict.fromkeys(ids)
    terms: dict[str, int] = {}
    async with running(*nodes):
        for _ in range(300):
            stream_id = chance.choice(ids)
            here, there = where[stream_id], chance.choice(nodes)
            if here is None or (here is not there and chance.random() < 0.3):
                term += 1
                terms[stream_id] = term
                if here is not None:
                    here.move_away(stream_id)
                there.set(stream_id, term=term, watched=chance.random() < 0.5)
                where[stream_id] = there
            elif chance.random() < 0.5:
                here.set(stream_id, term=terms[stream_id], watched=chance.random() < 0.5)
            else:
                here.set(stream_id, term=terms[stream_id], online=False)
                where[stream_id] = None
            await trio.sleep(chance.choice([0, 0.01, 0.05, 0.3, 2, 8]))
        table.query = table.answer = lambda: None
        await trio.sleep(2 * SOURCE_TIMEOUT)
        live = {each: place for each, place in where.items() if place is not None}
        assert table.told.keys() == live.keys()
        for stream_id, place in live.items():
            assert table.told[stream_id][1].watched == place.streams[stream_id].watched
    turns: dict[str, list[str]] = defaultdict(list)
    for event in table.events:
        stream_id, kind = event.split()
        turns[stream_id].append(kind)
    for kinds in turns.values():
        presence = [each for each in kinds if each.endswith("line")]
        watching = [each for each in kinds if each.endswith("watched")]
        assert presence == (["online", "offline"] * len(presence))[: len(presence)]
        assert watching == (["watched", "unwatched"] * len(watching))[: len(watching)]
