"""Alerts are kept in the order of their commits, and each only once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TypeVar, cast

import msgspec
import psycopg
import pytest
import trio
from attrs import define, evolve

from relay.model.access.identity import Service, User
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert
from relay.model.trace_context import TraceContext
from relay.postgres.database import Connection, Database, open_database
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import LOCK_ALERTS, AlertTable
from relay.postgres.tables.streams import StreamTable
from relay.protocol.codec import MAX_NON_FRAME_BYTES

T = TypeVar("T")

FIRE = NewAlert(
    stream_id="porch",
    sender="service:detector",
    severity="high",
    message="fire",
    timestamp=1_700_000_000_000,
)

SOON = datetime.now(UTC) + timedelta(hours=1)
ADA, BOB = User("ada", "session of ada", SOON), User("bob", "session of bob", SOON)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ada")
        await StreamTable(database).claim("yard", "bob")
        yield database


def kept(alerts: Sequence[StoredAlert | NoRoom | None]) -> list[StoredAlert]:
    return [alert for alert in alerts if isinstance(alert, StoredAlert)]


async def test_a_stored_alert_is_read_as_it_was_given(database: Database) -> None:
    alerts = AlertTable(database)
    given = evolve(FIRE, metadata={"box": [1, 2.5, None], "é": {"deep": True}}, alert_key="k")
    [stored] = kept(await alerts.store([given]))
    assert stored == StoredAlert(
        alert_id=stored.alert_id,
        stream_id="porch",
        owner_id="ada",
        sender="service:detector",
        severity="high",
        message="fire",
        timestamp=1_700_000_000_000,
        metadata={"box": [1, 2.5, None], "é": {"deep": True}},
    )
    assert stored.fresh
    assert await alerts.after(0) == [stored]


async def test_the_trace_of_an_alert_is_there_for_another_process(
    database: Database, postgres_url: str
) -> None:
    trace = TraceContext("a" * 32, "b" * 16, sampled=True, tracestate="k=v")
    alerts = AlertTable(database)
    [traced, other] = kept(await alerts.store([evolve(FIRE, trace=trace), FIRE]))
    assert (traced.trace, other.trace) == (trace, None)
    assert [each.trace for each in await alerts.after(0)] == [trace, None]
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update relay.alerts set trace_context = repeat('x', 1000000)")
    assert [each.trace for each in await alerts.after(0)] == [None, None]


async def test_alerts_are_read_in_order_a_page_at_a_time(database: Database) -> None:
    alerts = AlertTable(database)
    assert await alerts.latest_id() == 0
    assert await alerts.after(0) == []
    first = kept(await alerts.store([evolve(FIRE, message=str(n)) for n in range(5)]))
    second = kept(await alerts.store([evolve(FIRE, message=str(n)) for n in range(5, 7)]))
    everything = first + second
    assert [alert.message for alert in everything] == list("0123456")
    assert await alerts.after(0) == everything
    assert await alerts.after(0, limit=3) == everything[:3]
    assert await alerts.after(everything[2].alert_id) == everything[3:]
    assert await alerts.latest_id() == everything[-1].alert_id


async def test_only_known_streams_get_alerts_and_from_a_user_only_their_own(
    database: Database,
) -> None:
    outcome = await AlertTable(database).store(
        [
            FIRE,
            evolve(FIRE, stream_id="nowhere"),
            evolve(FIRE, sender="user:ada", by=ADA),
            evolve(FIRE, sender="user:bob", by=BOB),
            evolve(FIRE, stream_id="nowhere", by=ADA),
            evolve(FIRE, stream_id="yard"),
        ]
    )
    assert [
        (alert.stream_id, alert.owner_id) if isinstance(alert, StoredAlert) else alert
        for alert in outcome
    ] == [
        ("porch", "ada"),
        None,
        ("porch", "ada"),
        None,
        None,
        ("yard", "bob"),
    ]
    assert await AlertTable(database).after(0) == kept(outcome)


async def test_nothing_to_store_is_nothing_stored(database: Database) -> None:
    assert await AlertTable(database).store([]) == []
    assert await AlertTable(database).store([evolve(FIRE, stream_id="nowhere")]) == [None]


async def test_the_same_key_again_is_the_same_alert(database: Database) -> None:
    alerts = AlertTable(database)
    [first] = kept(await alerts.store([evolve(FIRE, alert_key="k", metadata={"n": 1})]))
    again = await alerts.store([evolve(FIRE, alert_key="k", message="other"), FIRE])
    assert again[0] == first
    assert [alert.fresh for alert in kept(again)] == [False, True]
    assert await alerts.after(0) == [first, again[1]]


async def test_the_same_key_twice_in_one_batch_is_one_alert(database: Database) -> None:
    alerts = AlertTable(database)
    batch = [evolve(FIRE, alert_key="k", message=str(n)) for n in range(3)]
    outcome = kept(await alerts.store([FIRE, *batch, FIRE]))
    assert [alert.message for alert in outcome] == ["fire", "0", "0", "0", "fire"]
    assert [alert.fresh for alert in outcome] == [True, True, False, False, True]
    assert len({alert.alert_id for alert in outcome}) == 3
    assert len(await alerts.after(0)) == 3


async def test_a_key_is_of_one_sender_and_one_stream(database: Database) -> None:
    outcome = await AlertTable(database).store(
        [
            evolve(FIRE, alert_key="k"),
            evolve(FIRE, alert_key="k", sender="service:other"),
            evolve(FIRE, alert_key="k", stream_id="yard"),
            evolve(FIRE, alert_key="other"),
            evolve(FIRE, alert_key=""),
        ]
    )
    assert [alert.fresh for alert in kept(outcome)] == [True] * 5


async def test_a_repeated_key_shows_nothing_to_who_may_not_store(database: Database) -> None:
    mine = evolve(FIRE, sender="user:ada", alert_key="k")
    outcome = await AlertTable(database).store([mine, evolve(mine, by=BOB)])
    assert outcome[1] is None


async def test_text_that_postgres_cannot_keep_harms_no_other(database: Database) -> None:
    alerts = AlertTable(database)
    outcome = kept(
        await alerts.store(
            [
                FIRE,
                evolve(FIRE, message="a\0b", alert_key="\0"),
                evolve(FIRE, message="\ud800", metadata={"\0": "\0"}),
                evolve(FIRE, metadata={"a": "\ud800"}),  # which could not be sent to anybody
            ]
        )
    )
    assert [alert.message for alert in outcome] == ["fire", "a\ufffdb", "?", "fire"]
    assert outcome[2].metadata == {"\0": "\0"}
    *read, last = await alerts.after(0)
    assert read == outcome[:3]
    assert last == evolve(outcome[3], metadata=None)
    assert last.odd == ("metadata",)
    assert await alerts.store([evolve(FIRE, stream_id="po\0rch")]) == [None]


async def test_the_longest_metadata_that_may_be_sent_is_read_as_it_was_given(
    database: Database,
) -> None:
    alerts = AlertTable(database)
    metadata = {"a": [False] * (MAX_NON_FRAME_BYTES - 10)}
    assert len(msgspec.msgpack.encode(metadata)) <= MAX_NON_FRAME_BYTES
    await alerts.store([evolve(FIRE, metadata=metadata)])
    [read] = await alerts.after(0)
    assert (read.metadata, read.odd) == (metadata, ())


async def test_one_key_from_many_writers_at_once_is_one_alert(database: Database) -> None:
    outcome: list[StoredAlert] = []

    async def write(key: str) -> None:
        outcome.extend(kept(await AlertTable(database).store([evolve(FIRE, alert_key=key)])))

    async with trio.open_nursery() as nursery:
        for n in range(40):
            nursery.start_soon(write, f"key {n % 4}")
    assert len(outcome) == 40
    assert sum(alert.fresh for alert in outcome) == 4
    assert len(await AlertTable(database).after(0)) == 4


@define(eq=False)
class SlowDatabase:
    """A database that is slow to commit."""

    database: Database
    seconds: float
    size: int = 4

    async def transact(self, work: Callable[[Connection], T]) -> T:
        def slow_work(connection: Connection) -> T:
            answer = work(connection)
            connection.execute("select pg_sleep(%s)", [self.seconds])
            return answer

        return await self.database.transact(slow_work)


async def test_a_reader_never_misses_an_alert_of_a_slow_writer(database: Database) -> None:
    """What has a smaller id than something read before would never be read."""
    chance = random.Random(7)
    written: list[StoredAlert] = []
    read: list[StoredAlert] = []
    alerts = AlertTable(database)

    async def write() -> None:
        for _ in range(10):
            slow = SlowDatabase(database, chance.uniform(0, 0.01))
            batch = [FIRE] * chance.randrange(1, 4)
            written.extend(kept(await AlertTable(cast("Database", slow)).store(batch)))

    async def keep_reading() -> None:
        while True:
            read.extend(await alerts.after(read[-1].alert_id if read else 0, limit=3))

    async with trio.open_nursery() as readers:
        readers.start_soon(keep_reading)
        async with trio.open_nursery() as writers:
            for _ in range(3):
                writers.start_soon(write)
        readers.cancel_scope.cancel()
    while len(page := await alerts.after(read[-1].alert_id)):
        read.extend(page)
    assert read == sorted(written, key=lambda alert: alert.alert_id)
    assert await alerts.latest_id() == read[-1].alert_id


async def test_alerts_wait_for_an_earlier_transaction_to_end(
    database: Database, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as earlier:
        earlier.execute(LOCK_ALERTS)
        (now,) = earlier.execute(
            "select (extract(epoch from clock_timestamp()) * 1000000)::bigint"
        ).fetchall()[0]
        outcome: list[StoredAlert | NoRoom | None] = []

        async def write() -> None:
            outcome.extend(await AlertTable(database).store([FIRE]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.to_thread.run_sync(wait_for_waiter, postgres_url)
            assert outcome == []
            earlier.rollback()
    assert kept(outcome)[0].alert_id > now


def wait_for_waiter(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        while not connection.execute(
            "select from pg_locks join pg_stat_activity using (pid)"
            " where not granted and datname = current_database()"
        ).fetchall():
            connection.execute("select pg_sleep(0.01)")


async def test_ids_do_not_tell_how_many_others_there_are(database: Database) -> None:
    """They say when an alert was accepted, wherever its table is filled from."""
    alerts = AlertTable(database)
    begun = datetime.now(UTC).timestamp()
    [first] = kept(await alerts.store([FIRE]))
    others = kept(await alerts.store([evolve(FIRE, stream_id="yard")] * 400))
    [last] = kept(await alerts.store([FIRE]))
    times = [alert.alert_id / 1_000_000 for alert in (first, *others, last)]
    assert times == sorted(times)
    assert begun - 60 < times[0] < times[-1] < datetime.now(UTC).timestamp() + 60
    steps = [later.alert_id - earlier.alert_id for earlier, later in pairwise(others)]
    assert min(steps) >= 1
    assert len(set(steps)) > 100


@pytest.mark.parametrize("removed", [False, True])
async def test_ids_grow_also_when_the_clock_is_behind(
    database: Database, postgres_url: str, *, removed: bool
) -> None:
    alerts = AlertTable(database)
    [first] = kept(await alerts.store([FIRE]))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update relay.alerts set alert_id = alert_id + 3600000000")
    if removed:
        assert await AlertPruner(database).remove_old(timedelta(0), most=10) == 1
    stored = kept(await alerts.store([FIRE, FIRE]))
    assert first.alert_id + 3600 * 1_000_000 < stored[0].alert_id < stored[1].alert_id
    assert stored[1].alert_id < 2**53


async def test_history_goes_by_prefixes(database: Database) -> None:
    streams, table = StreamTable(database), AlertTable(database)
    ids = ["a:1", "a:Z", "a:z", "a:", "a", "A:1", "a;", "a-1", "ab:1", "b:1"]
    for stream_id in [each for each in ids if each != "a;"]:
        await streams.claim(stream_id, "ada")
        await table.store([NewAlert(stream_id, "user:ada", "low", stream_id, 0)])

    async def seen(*consume: str) -> set[str]:
        reader = Service("sentry", frozenset(consume), alerts=True, operate=False)
        page = await table.history(reader)
        newest = await table.newest(reader, stream_id=None, before=None, limit=100)
        assert page is not None
        found = {each.stream_id for each in page.alerts}
        assert found == {each.stream_id for each in newest.alerts}
        for stream_id in ids:
            one = await table.history(reader, stream_id=stream_id)
            assert one is not None
            assert bool(one.alerts) == (stream_id in found)
        return found

    assert await seen("a:*") == {"a:1", "a:Z", "a:z", "a:"}
    assert await seen("a:*", "b:*", "a:1") == {"a:1", "a:Z", "a:z", "a:", "b:1"}
    assert await seen("a-*") == {"a-1"}
    assert await seen("b*", "**", "*:1", "a*1") == {"b:1"}
    assert await seen("c:*", "a:11*") == set()
