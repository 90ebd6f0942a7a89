"""Alerts that are old or too many go; whoever knew them goes on behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trio
from attrs import evolve

from relay.alerts.retention import REMOVAL_BATCH, Retention
from relay.metrics import Metrics
from relay.model.access.identity import Service, User
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import start_relay, until

SOON = datetime.now(UTC) + timedelta(hours=1)
ADA, BOB = User("ada", "session of ada", SOON), User("bob", "session of bob", SOON)
ALL = Service("all", frozenset({"*"}), alerts=False, operate=False)
PORCH = NewAlert("porch", "service:detector", "high", "fire", 1)
YARD = evolve(PORCH, stream_id="yard")
DAY = timedelta(days=1)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ada")
        await StreamTable(database).claim("yard", "bob")
        yield database


async def store(database: Database, *alerts: NewAlert) -> list[int]:
    stored = await AlertTable(database).store(alerts)
    return [alert.alert_id for alert in stored if isinstance(alert, StoredAlert)]


async def let_pass(database: Database, hours: float) -> None:
    """Make all alerts that are there so much older."""
    await database.transact(
        lambda connection: (
            connection.execute(
                "update relay.alerts set accepted_at = accepted_at - %s", [timedelta(hours=hours)]
            ).rowcount
        )
    )


async def ids(database: Database) -> list[int]:
    return [alert.alert_id for alert in await AlertTable(database).after(0, limit=5000)]


async def look_once(database: Database, *, days: int = 1, keep: int = 1000) -> Metrics:
    """Let the service look at everything once."""
    metrics, before = Metrics(), len(await ids(database))
    await Retention(AlertPruner(database), metrics, timedelta(days=days), keep).remove_all()
    assert before - len(await ids(database)) == metrics.alerts_removed
    return metrics


async def test_the_old_ones_go_batch_by_batch(database: Database) -> None:
    await store(database, *[PORCH, YARD] * 600)
    await let_pass(database, 25)
    young = await store(database, PORCH, YARD)
    assert (await look_once(database)).alerts_removed == 1200
    assert await ids(database) == young


async def test_of_a_stream_the_newest_stay(database: Database) -> None:
    many = await store(database, *[PORCH] * 1300)
    few = await store(database, *[YARD] * 100)
    await let_pass(database, 2)
    assert (await look_once(database, keep=100)).alerts_removed == 1200
    assert await ids(database) == many[-100:] + few


async def test_within_an_hour_none_is_one_too_many(database: Database) -> None:
    """Whoever sends an alert again does so within that time, and its key has to be known."""
    kept = await store(database, *[PORCH] * 300)
    assert (await look_once(database, keep=100)).alerts_removed == 0
    assert await ids(database) == kept


async def test_however_many_streams_there_are_each_is_looked_at(database: Database) -> None:
    streams = [f"stream-{number}" for number in range(50)]
    for stream_id in streams:
        await StreamTable(database).claim(stream_id, "ada")
        await store(database, *[evolve(PORCH, stream_id=stream_id)] * 3)
    await let_pass(database, 2)
    assert (await look_once(database, keep=2)).alerts_removed == 50


async def test_who_knows_one_that_went_gets_all_that_is_newer(database: Database) -> None:
    table = AlertTable(database)
    old = await store(database, PORCH, YARD, PORCH)
    await let_pass(database, 25)
    new = await store(database, YARD, PORCH)
    await look_once(database)
    assert await after(table, ADA, old[0], "porch") == [new[1]]
    assert await after(table, ADA, old[2]) == [new[1]]
    assert await after(table, ALL, old[1]) == new
    assert await after(table, ALL, old[2], "porch") == [new[1]]
    page = await table.history(ADA, after=None, last=10)
    assert page is not None
    assert [each.alert_id for each in page.alerts] == [new[1]]


async def test_who_names_one_that_never_was_or_is_not_theirs_is_told_so(
    database: Database,
) -> None:
    table = AlertTable(database)
    old = await store(database, PORCH, PORCH)
    await let_pass(database, 25)
    new = await store(database, YARD, PORCH)
    await look_once(database)
    assert await after(table, BOB, old[0]) is None  # of a stream of another
    assert await after(table, BOB, old[0], "yard") is None
    assert await after(table, ADA, new[0]) is None
    assert await after(table, ALL, 2**53) is None
    assert await after(table, BOB, new[0]) == []


async def after(
    table: AlertTable, reader: User | Service, alert_id: int, stream_id: str | None = None
) -> list[int] | None:
    page = await table.history(reader, stream_id=stream_id, after=alert_id)
    return None if page is None else [each.alert_id for each in page.alerts]


async def test_paging_backwards_ends_where_the_rest_went(database: Database) -> None:
    table = AlertTable(database)
    old = await store(database, *[PORCH] * 5)
    page = await table.newest(ADA, stream_id=None, before=None, limit=2)
    await let_pass(database, 25)
    await look_once(database)
    page = await table.newest(ADA, stream_id=None, before=old[3], limit=2)
    assert (page.alerts, page.more) == ([], False)


async def test_a_key_is_known_as_long_as_its_alert_is_kept(database: Database) -> None:
    keyed = evolve(PORCH, alert_key="k")
    [first] = await store(database, keyed)
    await let_pass(database, 23)
    await look_once(database)
    assert await store(database, keyed) == [first]
    await let_pass(database, 2)
    await look_once(database)
    [again] = await store(database, keyed)
    assert again > first


async def test_alerts_that_are_stored_again_while_others_go_are_found_or_new(
    database: Database,
) -> None:
    """An earlier one must not go between looking it up by its key and reading it."""
    keyed = [evolve(PORCH, alert_key=str(number)) for number in range(300)]
    for _ in range(3):
        await store(database, *keyed)
        await let_pass(database, 25)
        outcome: list[StoredAlert | NoRoom | None] = []

        async def store_again(
            batch: list[NewAlert], into: list[StoredAlert | NoRoom | None]
        ) -> None:
            into.extend(await AlertTable(database).store(batch))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(AlertPruner(database).remove_old, DAY, most=REMOVAL_BATCH))
            for start in range(0, 300, 50):
                nursery.start_soon(store_again, keyed[start : start + 50], outcome)
        assert len(outcome) == 300
        assert None not in outcome


async def test_a_relay_removes_them_and_serves_who_knew_them(
    postgres_url: str,
) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    accounts.execute(
        "insert into relay.streams (stream_id, owner_id) values (%s, 'ann')", stream_id
    )
    async with open_database(postgres_url) as database:
        old_ones = [evolve(PORCH, stream_id=stream_id, message=text) for text in ("a", "b")]
        await store(database, *old_ones)
    old = accounts.execute("select min(alert_id) from relay.alerts")[0][0]
    accounts.execute("update relay.alerts set accepted_at = now() - interval '3 days'")
    accounts.execute("select relay.raise_alert(%s, 'new')", stream_id)
    with start_relay("--alert-days", "2", database_url=postgres_url) as relay:

        async def has_removed() -> bool:
            return bool((await relay.stats())["alerts_removed"] == 2)

        await until(has_removed)
        async with login(relay, accounts.session("ann")) as phone:
            await phone.send({"type": "alerts-since", "streamId": stream_id, "after": old})
            assert (await phone.receive())["message"] == "new"
            assert (await phone.receive())["more"] is False
            wrong = {"type": "alerts-since", "streamId": stream_id, "after": 2**53}
            assert (await phone.ask(wrong))["code"] == "INVALID_MESSAGE"
