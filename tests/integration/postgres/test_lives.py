"""Another owner of a stream is another life of it, whoever makes the change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
import trio
from attrs import evolve

from relay.errors import StoreRejects
from relay.model.access.identity import ANY_STREAM, Identity, Service, User
from relay.model.alerts.alert import History, NewAlert, StoredAlert
from relay.model.targets.alert_target import AlertTarget, NewTarget
from relay.model.targets.outbox import event_id_of
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import AlertTable, store_raised
from relay.postgres.tables.stream_owners import StreamOwnershipTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts

SOON = datetime.now(UTC) + timedelta(hours=1)
ADA, BOB = (User(name, f"session of {name}", SOON) for name in ("ada", "bob"))
SENTRY = Service("sentry", frozenset({"porch"}), alerts=True, operate=False)
WATCHMAN = Service("watchman", frozenset({ANY_STREAM}), alerts=True, operate=False)
EVERYBODY: tuple[Identity, ...] = (ADA, BOB, SENTRY, WATCHMAN)
FIRE = NewAlert("porch", "user:ada", "high", "fire", 0)
TO_BOB = "update relay.streams set owner_id = 'bob' where stream_id = 'porch'"
TO_NOBODY = "update relay.streams set owner_id = null where stream_id = 'porch'"


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    IDS.clear()
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ada")
        yield database


@pytest.fixture
def rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)


IDS: list[int] = []
"""The ids of the stored alerts; tests name them by their place, from 1."""


def numbers(alert_ids: Iterable[int]) -> list[int]:
    return [IDS.index(alert_id) + 1 for alert_id in alert_ids]


async def seen(database: Database, reader: Identity) -> list[int]:
    """The alerts that a reader can get, in every way, which all have to agree."""
    table = AlertTable(database)
    ways = []
    for stream_id in ("porch", None):
        forth = await table.history(reader, stream_id=stream_id)
        back = await table.history(reader, stream_id=stream_id, last=100)
        newest = await table.newest(reader, stream_id=stream_id, before=None, limit=100)
        assert forth is not None
        assert back is not None
        for page in (forth, back, History(newest.alerts[::-1], newest.more)):
            assert not page.more
            ways.append(numbers(each.alert_id for each in page.alerts))
    assert all(way == ways[0] for way in ways), ways
    return ways[0]


async def store(database: Database, *alerts: NewAlert) -> list[int]:
    """Store alerts; returns their numbers."""
    stored = [
        each.alert_id
        for each in await AlertTable(database).store(alerts)
        if isinstance(each, StoredAlert)
    ]
    IDS.extend(sorted({*stored} - {*IDS}))
    return numbers(stored)


@pytest.mark.parametrize("statements", [[TO_BOB], [TO_NOBODY], [TO_NOBODY, TO_BOB]], ids=str)
async def test_alerts_of_a_former_life_are_nobodys(
    database: Database, rows: Accounts, statements: list[str]
) -> None:
    await store(database, FIRE, FIRE)
    assert [await seen(database, each) for each in EVERYBODY] == [[1, 2], [], [1, 2], [1, 2]]
    for statement in statements:
        rows.execute(statement)
    assert await StreamTable(database).claim("porch", "bob") == "bob"
    assert [await seen(database, each) for each in EVERYBODY] == [[]] * 4
    assert await AlertTable(database).after(0) == []
    assert await store(database, FIRE) == [3]
    assert [await seen(database, each) for each in EVERYBODY] == [[], [3], [3], [3]]


async def test_a_position_of_a_former_life_is_none_of_the_new_one(
    database: Database, rows: Accounts
) -> None:
    await store(database, FIRE, FIRE, FIRE)
    rows.execute("update relay.alerts set accepted_at = '2000-01-01' where alert_id = %s", IDS[0])
    await AlertPruner(database).remove_old(timedelta(days=1), most=10)
    table = AlertTable(database)
    for position in (1, 2):  # one was removed
        assert await table.history(SENTRY, stream_id="porch", after=IDS[position - 1]) is not None
    rows.execute(TO_BOB)
    await store(database, FIRE)
    for reader in EVERYBODY:
        for stream_id in ("porch", None):
            for position in (1, 2):
                page = await table.history(reader, stream_id=stream_id, after=IDS[position - 1])
                assert page is None, (reader, stream_id, position)
    assert await table.history(BOB, stream_id="porch", after=IDS[3]) is not None


async def test_the_owner_who_has_it_back_begins_anew_too(
    database: Database, rows: Accounts
) -> None:
    await store(database, FIRE)
    rows.execute(TO_BOB)
    rows.execute("update relay.streams set owner_id = 'ada' where stream_id = 'porch'")
    assert await seen(database, ADA) == []


async def test_a_key_of_a_former_life_is_free(database: Database, rows: Accounts) -> None:
    keyed = evolve(FIRE, sender="service:sentry", alert_key="k")
    assert await store(database, keyed, keyed) == [1, 1]
    rows.execute(TO_BOB)
    assert await store(database, keyed, keyed) == [2, 2]
    assert await seen(database, BOB) == [2]


async def test_an_alert_that_was_on_its_way_is_not_the_new_owners(
    database: Database, postgres_url: str, rows: Accounts
) -> None:
    alert = evolve(FIRE, by=ADA)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("select relay.lock_alerts()")
        async with trio.open_nursery() as nursery:
            stored: list[int] = []

            async def keep() -> None:
                stored.extend(await store(database, alert))

            nursery.start_soon(keep)
            waiting = "select 1 from pg_locks where not granted"
            while not rows.execute(waiting):  # noqa: ASYNC110 - the database tells nobody
                await trio.sleep(0.01)
            rows.execute(TO_BOB)  # the permission was looked up before
            connection.commit()
    assert stored == []
    assert await seen(database, BOB) == []


async def test_an_alert_that_was_stored_beside_the_change_is_of_the_life_before(
    database: Database, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute(TO_BOB)  # which sees no alert
        await store(database, FIRE)
        connection.commit()
    assert await seen(database, BOB) == []
    assert await AlertTable(database).after(0) == []


@pytest.mark.parametrize(
    "statement", [TO_BOB, TO_NOBODY, "delete from relay.streams where stream_id = 'porch'"]
)
async def test_grants_and_webhooks_for_the_stream_end_with_its_owner(
    database: Database, rows: Accounts, statement: str
) -> None:
    for grant in (("eve", "porch"), ("eve", "*"), ("eve", "yard")):
        rows.execute("insert into relay.grants values (%s, %s)", *grant)
    hooks = AlertTargetTable(database)
    of_stream = await hooks.add(NewTarget("https://hook.example", "s", stream_id="porch"))
    of_owner = await hooks.add(NewTarget("https://hook.example", "s", owner_id="ada"))
    rows.execute(statement)
    left = rows.execute("select stream_id from relay.grants order by 1")
    assert left == [("*",), ("yard",)]
    assert (await hooks.find(of_stream)).last_error == "the stream has another owner"
    assert (await hooks.find(of_owner)).given_up_at is None


async def test_other_changes_of_a_stream_begin_no_life(database: Database, rows: Accounts) -> None:
    rows.execute("insert into relay.grants values ('eve', 'porch')")
    await store(database, FIRE)
    rows.execute("update relay.streams set owner_id = owner_id, created_at = now()")
    assert await seen(database, ADA) == [1]
    assert rows.execute("select count(*) from relay.grants") == [(1,)]


async def behind(hooks: AlertTargetTable, hook: AlertTarget) -> list[int]:
    return numbers(event_id_of(each) for each in (await hooks.behind(hook, 0)).events)


async def test_webhooks_get_no_alert_of_a_former_life(database: Database, rows: Accounts) -> None:
    hooks = AlertTargetTable(database)
    hook = await hooks.find(await hooks.add(NewTarget("https://hook.example", "s", owner_id="bob")))
    await store(database, FIRE)
    rows.execute(TO_BOB)
    assert await hooks.claim(uuid4(), lasts=timedelta(seconds=9), room={"webhook": 9}) == []
    assert (await hooks.behind(hook, 0)).events == []
    await store(database, FIRE)
    assert await behind(hooks, hook) == [2]
    assert len(await hooks.claim(uuid4(), lasts=timedelta(seconds=9), room={"webhook": 9})) == 1


async def test_alerts_of_a_former_life_are_removed_in_time(
    database: Database, rows: Accounts
) -> None:
    await store(database, FIRE, FIRE)
    rows.execute("update relay.alerts set accepted_at = now() - interval '2 hours'")
    rows.execute(TO_BOB)
    await store(database, FIRE)
    pruner = AlertPruner(database)
    (excess,), _ = await pruner.find_excess(100, after="")
    assert await pruner.remove_excess(excess, most=10) == 2
    assert (await pruner.find_excess(100, after=""))[0] == []
    assert await seen(database, BOB) == [3]


async def test_an_alert_that_sql_inserts_is_of_the_present_life(
    database: Database, rows: Accounts
) -> None:
    rows.execute("select relay.raise_alert('porch', 'fire')")
    rows.execute(TO_BOB)  # before a relay has stored it
    rows.execute("select relay.raise_alert('porch', 'smoke')")
    await store_raised(database)
    page = await AlertTable(database).history(BOB)
    assert page is not None
    assert [each.message for each in page.alerts] == ["smoke"]


async def test_an_owner_who_gets_the_history_too_sees_it_everywhere(
    database: Database, rows: Accounts
) -> None:
    hooks = AlertTargetTable(database)
    hook = await hooks.find(await hooks.add(NewTarget("https://hook.example", "s", owner_id="bob")))
    await store(database, FIRE, FIRE)
    ownership = StreamOwnershipTable(database, None)
    await ownership.transfer("porch", "bob", with_history=True)
    await store(database, FIRE)
    assert [await seen(database, each) for each in EVERYBODY] == [[], *[[1, 2, 3]] * 3]
    assert await behind(hooks, hook) == [1, 2, 3]
    assert len(await hooks.claim(uuid4(), lasts=timedelta(seconds=9), room={"webhook": 9})) == 1
    rows.execute("update relay.streams set owner_id = 'ada' where stream_id = 'porch'")
    assert (await hooks.behind(hook, 0)).events == []
    assert await hooks.claim(uuid4(), lasts=timedelta(seconds=9), room={"webhook": 9}) == []


@pytest.mark.parametrize("comes_first", ["alert", "owner"])
async def test_an_alert_that_was_stored_beside_a_transfer_with_history_is_the_new_owners(
    database: Database, rows: Accounts, postgres_url: str, comes_first: str
) -> None:
    hooks = AlertTargetTable(database)
    hook = await hooks.find(await hooks.add(NewTarget("https://hook.example", "s", owner_id="bob")))
    ownership = StreamOwnershipTable(database, None)

    async def wait_until_one_waits() -> None:
        while not rows.execute("select 1 from pg_locks where not granted"):  # noqa: ASYNC110
            await trio.sleep(0.01)

    with psycopg.connect(postgres_url) as connection:
        async with trio.open_nursery() as nursery:
            if comes_first == "alert":
                connection.execute("select relay.raise_alert('porch', 'fire')")
                connection.execute("select relay.store_raised_alerts(1)")

                async def transfer() -> None:
                    await ownership.transfer("porch", "bob", with_history=True)

                nursery.start_soon(transfer)
            else:
                connection.execute("select set_config('relay.with_history', 'porch', true)")
                connection.execute(TO_BOB)
                rows.execute("select relay.raise_alert('porch', 'fire')")
                nursery.start_soon(store_raised, database)
            with trio.move_on_after(1):
                await wait_until_one_waits()
            connection.commit()
    IDS.extend(each.alert_id for each in await AlertTable(database).after(0))
    assert await seen(database, BOB) == [1]
    assert await behind(hooks, hook) == [1]
    assert len(await hooks.claim(uuid4(), lasts=timedelta(seconds=9), room={"webhook": 9})) == 1


async def test_a_transfer_with_a_long_history_may_take_longer_than_other_queries(
    database: Database, rows: Accounts, postgres_url: str
) -> None:
    await store(database, FIRE)
    rows.execute(
        "create function public.take_long() returns trigger language plpgsql as"
        " 'begin perform pg_sleep(0.5); return null; end'"
    )
    rows.execute(
        "create trigger take_long after update on relay.alerts"
        " for each statement execute function public.take_long()"
    )
    async with open_database(postgres_url, statement_timeout=0.2) as hurried:
        await StreamOwnershipTable(hurried, None).transfer("porch", "bob", with_history=True)
        with pytest.raises(StoreRejects):
            await StreamOwnershipTable(hurried, None).transfer("porch", "\0", with_history=True)
    assert await seen(database, BOB) == [1]
