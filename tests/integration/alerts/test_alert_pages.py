"""What reading a page of alerts costs is bounded, whatever the alerts hold and whose they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import trio
import trio.testing
from attrs import evolve

from relay.model.access.identity import ANY_STREAM, Identity, Service, User
from relay.model.alerts.alert import NewAlert, StoredAlert
from relay.model.targets.alert_target import AlertTarget, NewTarget
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alert_targets import CLAIM_TARGETS, AlertTargetTable
from relay.postgres.tables.alerts.alert_pages import MAX_ALERT_ID, MAX_PAGE_COST, Scope, read_page
from relay.postgres.tables.alerts.alert_rows import MAX_METADATA_LENGTH
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.outbox_pages import Bounds, alert_ids
from relay.postgres.tables.streams import StreamTable
from tests.integration.relay_process import PATIENCE, until, within

SOON = datetime.now(UTC) + timedelta(hours=1)
ADA = User("ada", "session of ada", SOON, frozenset({"gate"}))
BOB = User("bob", "session of bob", SOON)
FIRE = NewAlert("porch", "user:ada", "high", "fire", 0)
HEAVY = evolve(FIRE, metadata={"a": [[]] * 65_000})
ALL = Scope(None, everything=True, values={})
BOUNDS = {"after": 0, "before": MAX_ALERT_ID}


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url, statement_timeout=PATIENCE) as database:
        streams = StreamTable(database)
        await streams.claim("porch", "ada")
        await streams.claim("yard", "bob")
        await streams.claim("gate", "bob")
        yield database


async def webhook(database: Database) -> AlertTarget:
    table = AlertTargetTable(database)
    return await table.find(await table.add(NewTarget("https://hook.example", "s", owner_id="ada")))


async def test_a_page_of_heavy_alerts_has_as_many_as_its_bytes_allow(database: Database) -> None:
    hook = await webhook(database)
    table = AlertTable(database)
    stored = [
        each.alert_id for each in await table.store([HEAVY] * 60) if isinstance(each, StoredAlert)
    ]
    most = MAX_PAGE_COST // (2 * 65_000) + 1
    for page in (
        await table.after(0),
        (await AlertTargetTable(database).behind(hook, 0)).events,
        (await table.newest(ADA, stream_id=None, before=None, limit=1000)).alerts,
    ):
        assert 1 <= len(page) <= most
    history = await table.history(ADA, after=0, limit=1000)
    assert history is not None
    assert history.more
    assert [each.alert_id for each in history.alerts] == stored[: len(history.alerts)]
    last = await table.history(ADA, last=50)
    assert last is not None
    assert last.more
    assert last.alerts[0].alert_id == stored[10]


async def test_all_heavy_alerts_are_read_page_by_page(database: Database) -> None:
    table = AlertTable(database)
    stored = await table.store([HEAVY, FIRE] * 20)
    read: list[int] = []
    while page := await table.after(read[-1] if read else 0):
        read += [each.alert_id for each in page]
    assert read == [each.alert_id for each in stored if isinstance(each, StoredAlert)]


@pytest.mark.slow
async def test_values_longer_than_any_alert_stay_in_the_database(
    database: Database, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "select relay.store_alerts(array['porch', 'porch'], array['s', 's'],"
            " array['low', 'low'], array[repeat('m', 50000000), 'after'], array[1, 1]::bigint[],"
            " array[json_build_array(repeat('x', 50000000)), null], array[null, null]::text[])"
        )
    read = await AlertTable(database).after(0)
    assert [(each.message[:5], each.metadata, each.odd) for each in read] == [
        ("mmmmm", None, ("message", "metadata")),
        ("after", None, ()),
    ]
    assert MAX_METADATA_LENGTH < 50_000_000


async def test_a_row_that_cannot_be_read_stops_none_behind_it(
    database: Database, postgres_url: str
) -> None:
    """A message whose chunks are gone from the disk, as after a crash without fsync."""
    hook = await webhook(database)
    table = AlertTable(database)
    await table.store([evolve(FIRE, message=text) for text in ("a", "b", "c")])
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("alter table relay.alerts alter message set storage external")
        connection.execute(
            "update relay.alerts set message = repeat('b', 9000) where message = 'b'"
        )
        [(toast,)] = connection.execute(
            "select reltoastrelid::regclass::text from pg_class"
            " where oid = 'relay.alerts'::regclass"
        )
        connection.execute("set allow_system_table_mods = on")
        mend = "update pg_class set relkind = %s where oid = %s::regclass"
        connection.execute(mend, ["r", toast])
        connection.execute(f"delete from {toast}")
        connection.execute(mend, ["t", toast])
    history = await table.history(ADA, after=None)
    assert history is not None
    for page in (
        await table.after(0),
        (await AlertTargetTable(database).behind(hook, 0)).events,
        history.alerts,
    ):
        alerts = [each for each in page if isinstance(each, StoredAlert)]
        assert [each.message for each in alerts] == ["a", "", "c"]
        assert "message" in alerts[1].odd


@pytest.mark.slow
async def test_history_looks_at_no_alerts_of_others(database: Database, postgres_url: str) -> None:
    """The time of an answer neither grows with the alerts of others nor tells of their streams."""
    await AlertTable(database).store([FIRE] * 3)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "insert into relay.alerts (alert_id, stream_id, sender, severity, message, timestamp)"
            " select 10 + n, 'yard', 'user:bob', 'low', 'm', 1 from generate_series(1, 100000) n"
        )
        connection.execute("analyze relay.alerts, relay.streams")
        for stream_id, most in ((None, 60), ("porch", 40), ("yard", 40), ("nowhere", 40)):
            scope = Scope.of(ADA, stream_id)
            values = {**scope.values, **BOUNDS, "most": 101}
            assert blocks(connection, scope.ids(), values) <= most
            assert blocks(connection, scope.ids("desc"), values) <= most
        others, nobodys = (
            blocks(connection, Scope.of(ADA, each).ids(), values | {"stream_id": each})
            for each in ("yard", "nowhere")
        )
        assert abs(others - nobodys) <= 2


def blocks(connection: psycopg.Connection[Any], query: Any, values: dict[str, Any]) -> int:
    """The blocks that a query reads."""
    explain = f"explain (analyze, buffers, format json) {query}"
    connection.execute(explain, values)  # fills the caches of the catalogue
    [([plan],)] = connection.execute(explain, values)
    node = plan["Plan"]
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


SERVICE = Service("sentry", frozenset({ANY_STREAM}), alerts=False, operate=False)
YARD = Service("one", frozenset({"yard"}), alerts=False, operate=False)


@pytest.mark.parametrize(
    ("reader", "stream_id", "seen"),
    [
        (ADA, None, ["porch", "gate"]),
        (ADA, "gate", ["gate"]),
        (ADA, "yard", []),
        (ADA, "nowhere", []),
        (User("eve", "s", SOON), None, []),
        (SERVICE, None, ["porch", "yard", "gate"]),
        (SERVICE, "yard", ["yard"]),
        (YARD, None, ["yard"]),
        (YARD, "porch", []),
    ],
)
async def test_readers_see_the_alerts_of_their_streams(
    database: Database, reader: Identity, stream_id: str | None, seen: list[str]
) -> None:
    table = AlertTable(database)
    await table.store([evolve(FIRE, stream_id=each) for each in ("porch", "yard", "gate")])
    page = await table.history(reader, stream_id=stream_id)
    assert page is not None
    assert [each.stream_id for each in page.alerts] == seen
    newest = await table.newest(reader, stream_id=stream_id, before=None, limit=2)
    assert [each.stream_id for each in newest.alerts] == seen[::-1][:2]
    assert newest.more == (len(seen) > 2)


async def test_questions_about_history_leave_connections_to_others(
    database: Database, postgres_url: str
) -> None:
    table = AlertTable(database)
    with psycopg.connect(postgres_url) as other:
        other.execute("lock table relay.alerts")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(table.history, ADA)
            await trio.testing.wait_all_tasks_blocked(0.1)
            async with within(2):
                await database.check()
            other.rollback()


async def test_pages_are_read_by_the_index_of_their_alerts(
    database: Database, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "insert into relay.alerts (alert_id, stream_id, sender, severity, message, timestamp)"
            " select n, 'yard', 'user:bob', 'low', 'm', 1 from generate_series(1, 100000) n"
        )
        connection.execute("analyze relay.alerts, relay.streams")
        values = {**BOUNDS, "after": 50_000, "most": 500}
        page = read_page(connection, ALL.ids(), values)
        assert [each.alert_id for each in page.alerts] == list(range(50_001, 50_501))


async def test_many_questions_of_one_reader_do_not_hold_up_another(
    database: Database, postgres_url: str
) -> None:
    table = AlertTable(database)
    running = (
        "select count(*) from pg_locks where not granted and relation = 'relay.alerts'::regclass"
        " and database = (select oid from pg_database where datname = current_database())"
    )
    with psycopg.connect(postgres_url) as other:
        other.execute("lock table relay.alerts")

        async def are_running(questions: int) -> None:
            async def reached() -> bool:
                return await trio.to_thread.run_sync(count) >= questions

            def count() -> int:
                [(found,)] = other.execute(running).fetchall()
                return int(found)

            await until(reached)
            await trio.sleep(0.05)  # for one too many
            assert count() == questions

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(table.history, ADA)
            await are_running(1)
            nursery.start_soon(table.history, BOB)
            await are_running(2)
            other.rollback()


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_questions_about_history_leave_a_connection_to_verification(
    postgres_url: str, size: int
) -> None:
    async with open_database(postgres_url, pool_size=size) as database:
        table = AlertTable(database)
        with psycopg.connect(postgres_url) as other:
            other.execute("lock table relay.alerts in access exclusive mode")
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(
                        partial(table.history, evolve(BOB, user_id=f"user {number}"))
                    )
                await until(lambda: table._history_slots.borrowed_tokens == max(1, size // 2))
                async with within(2):
                    await database.check()
                nursery.cancel_scope.cancel()


async def test_a_webhook_costs_the_same_however_many_ids_a_user_has(
    database: Database, postgres_url: str
) -> None:
    table = AlertTargetTable(database)
    hooks = [
        await table.find(await table.add(new))
        for new in (
            NewTarget("https://hook.example", "s", owner_id="ada"),
            NewTarget("https://hook.example", "s", owner_id="bob"),
            NewTarget("https://hook.example", "s", stream_id="yard"),
        )
    ]
    await AlertTable(database).store([evolve(FIRE, stream_id=each) for each in ("porch", "yard")])
    claim: dict[str, object] = {"lease": uuid4(), "lasts": timedelta(0)}
    claim |= {"kinds": ["webhook"], "most": [64], "viewers": 64}
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "insert into relay.streams (stream_id, owner_id)"
            " select 'phone-' || n, 'bob' from generate_series(1, 100000) n"
        )
        connection.execute("vacuum analyze relay.alerts, relay.streams")
        for behind in (True, False):
            assert blocks(connection, CLAIM_TARGETS, claim) <= 60
            for hook in hooks:
                ids = alert_ids(hook)
                assert ids is not None
                values = Bounds.of(hook, hook.position, MAX_ALERT_ID, 20).values
                assert blocks(connection, ids, values) <= 30
                assert len((await table.behind(hook, hook.position)).events) == 1
            scope = Scope.of(BOB, None)
            assert blocks(connection, scope.ids(), {**scope.values, **BOUNDS, "most": 101}) <= 30
            if behind:
                connection.execute(
                    "update relay.webhooks set position = (select max(alert_id) from relay.alerts)"
                )
