"""The table of the audit: whatever is recorded can be kept, in order, once, and for a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import trio
from attrs import evolve

from relay.errors import ConfigError
from relay.model.audit_event import AuditEvent
from relay.postgres.database import Connection, Database, open_database
from relay.postgres.tables.audit import AuditTable, record_change
from relay.postgres.tables.grants import Grants
from relay.postgres.tables.service_tokens import ServiceTokenTable
from relay.postgres.tables.sessions.users import BetterAuthUsers

DAY = timedelta(days=1)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        yield database


def failed(reason: str = "", *, age: timedelta = timedelta(0)) -> AuditEvent:
    return AuditEvent(
        what="auth", outcome="failed", reason=reason, at=datetime.now(UTC) - age, connection=1
    )


async def test_a_row_is_read_as_it_was_recorded(database: Database) -> None:
    event = AuditEvent(
        what="register",
        outcome="refused",
        reason="This stream id is taken",
        address="2001:db8::7",
        user_id="ann",
        session_id="session-of-ann",
        stream_id="front-door",
        connection=2**40,
    )
    bare = failed()
    await AuditTable(database).write([event, bare])
    assert await AuditTable(database).read() == [event, bare]


async def test_the_order_of_a_batch_is_the_order_of_the_rows(database: Database) -> None:
    table = AuditTable(database)
    await table.write([failed(str(number)) for number in range(500)])
    await table.write([failed(str(number)) for number in range(500, 510)])
    read = await table.read(limit=1000)
    assert [event.reason for event in read] == [str(number) for number in range(510)]
    assert [event.reason for event in await table.read(limit=3)] == ["507", "508", "509"]


async def test_a_batch_is_there_once_however_often_it_is_written(database: Database) -> None:
    table, batch = AuditTable(database), [failed("1"), failed("2")]
    for _ in range(3):
        await table.write(batch)
    await table.write([*batch, failed("3")])
    assert [event.reason for event in await table.read()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "text", ["\0", "\ud800", "a\nb\x1b[31m", "'); drop table relay.audit; --", "%s", "x" * 10_000]
)
async def test_no_value_breaks_a_batch(text: str, database: Database) -> None:
    hostile = AuditEvent(
        what=text, outcome=text, reason=text, address=text, user_id=text, service=text,
        session_id=text, stream_id=text,
    )  # fmt: skip
    table = AuditTable(database)
    await table.write([failed("before"), hostile, failed("after")])
    assert [event.reason for event in await table.read()] == ["before", hostile.reason, "after"]
    assert await table.read(who=text) == await table.read(what=text) == [hostile]


async def test_rows_are_found_by_who_what_and_when(database: Database) -> None:
    table = AuditTable(database)
    old = evolve(failed("old", age=2 * DAY), user_id="ann")
    ann, sentry = evolve(failed("ann"), user_id="ann"), evolve(failed("sentry"), service="sentry")
    close = evolve(ann, event_id=failed().event_id, what="close")
    await table.write([old, ann, sentry, close])
    assert await table.read(who="ann") == [old, ann, close]
    assert await table.read(who="sentry") == [sentry]
    assert await table.read(what="close") == [close]
    assert await table.read(since=DAY) == [ann, sentry, close]
    assert await table.read(who="ann", what="auth", since=DAY) == [ann]
    assert await table.read(who="nobody") == []


async def test_the_oldest_rows_are_pruned_first_and_no_younger_one(database: Database) -> None:
    table = AuditTable(database)
    await table.write([failed(str(age), age=age * DAY) for age in (1, 9, 5, 8, 7)])
    assert await table.prune(6 * DAY, most=2) == 2
    assert [event.reason for event in await table.read()] == ["1", "5", "7"]
    assert await table.prune(6 * DAY, most=2) == 1
    assert await table.prune(6 * DAY, most=2) == 0
    assert [event.reason for event in await table.read()] == ["1", "5"]


async def test_relays_that_prune_at_once_do_not_wait_for_one_another(database: Database) -> None:
    table = AuditTable(database)
    await table.write([failed(str(number), age=9 * DAY) for number in range(100)])
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(lambda: table.prune(DAY, most=50))
    while await table.prune(DAY, most=50):
        pass
    assert await table.read() == []


async def test_a_change_and_its_row_are_both_there_or_neither(database: Database) -> None:
    def change_and_fail(connection: Connection) -> None:
        record_change(connection, "grant", reason="made", user_id="ann", stream_id="porch")
        raise RuntimeError("a bug behind it")

    with pytest.raises(RuntimeError):
        await database.transact(change_and_fail)
    assert await AuditTable(database).read() == []

    await ServiceTokenTable(database, BetterAuthUsers(database, None)).create(
        "sentry", consume=["*"], alerts=True, operate=False
    )
    with pytest.raises(ConfigError):
        await ServiceTokenTable(database, BetterAuthUsers(database, None)).create(
            "sentry", consume=[], alerts=True, operate=False
        )
    await ServiceTokenTable(database, BetterAuthUsers(database, None)).revoke("sentry")
    with pytest.raises(ConfigError):
        await ServiceTokenTable(database, BetterAuthUsers(database, None)).revoke("sentry")
    rows = await AuditTable(database).read()
    assert [(row.what, row.reason, row.service) for row in rows] == [
        ("service-token", "made", "sentry"),
        ("service-token", "revoked", "sentry"),
    ]
    assert {(row.outcome, row.address) for row in rows} == {("succeeded", "command line")}


async def test_a_grant_is_recorded_when_it_changes_something(database: Database) -> None:
    grants = Grants(database)
    for _ in range(2):
        await grants.grant("ann", "porch")
    for _ in range(2):
        await grants.revoke("ann", "porch")
    rows = await AuditTable(database).read()
    assert [(row.what, row.reason, row.user_id, row.stream_id) for row in rows] == [
        ("grant", "made", "ann", "porch"),
        ("grant", "revoked", "ann", "porch"),
    ]
