"""Pages of alerts, compared with what a model of owners and lives says."""

from __future__ import annotations

import random

import pytest

from relay.model.access.identity import Service, User
from relay.model.alerts.alert import NewAlert, StoredAlert
from relay.model.targets.alert_target import NewTarget
from relay.model.targets.outbox import event_id_of
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.stream_owners import StreamOwnershipTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.postgres.test_lives import SOON

STREAMS = ("a", "a1", "b", "c")
OWNERS = ("ada", "bob")
READERS: tuple[User | Service, ...] = (
    *(User(name, f"session of {name}", SOON) for name in OWNERS),
    User("ada", "granted", SOON, frozenset({"b", "a*"})),
    Service("sentry", frozenset({"a*", "c"}), alerts=True, operate=False),
)
STEPS = 60


async def pages(table: AlertTable, reader: User | Service, stream_id: str | None) -> list[int]:
    found: list[int] = []
    while True:
        after = found[-1] if found else None
        page = await table.history(reader, stream_id=stream_id, after=after, limit=3)
        assert page is not None
        found += [each.alert_id for each in page.alerts]
        if not page.more:
            break
    back: list[int] = []
    while True:
        before = back[-1] if back else None
        page = await table.newest(reader, stream_id=stream_id, before=before, limit=3)
        back += [each.alert_id for each in page.alerts]
        if not page.more:
            break
    assert back == found[::-1]
    return found


def may_see(reader: User | Service, stream_id: str, owner: str) -> bool:
    if isinstance(reader, User) and reader.user_id == owner:
        return True
    scopes = reader.consume if isinstance(reader, Service) else reader.granted
    return stream_id in scopes or any(
        each.endswith("*") and stream_id.startswith(each[:-1]) for each in scopes
    )


@pytest.mark.parametrize("seed", range(3))
async def test_pages_hold_what_a_model_says(
    postgres_url: str, accounts_rows: Accounts, seed: int
) -> None:
    chance = random.Random(seed)
    owner: dict[str, str | None] = {}
    alerts: dict[str, list[int]] = {each: [] for each in STREAMS}
    async with open_database(postgres_url) as database:
        hooks = AlertTargetTable(database)
        hook = {
            each: await hooks.find(await hooks.add(NewTarget("https://h", "s", owner_id=each)))
            for each in OWNERS
        }
        for _ in range(STEPS):
            await step(chance, database, accounts_rows, owner, alerts)
        table = AlertTable(database)
        for reader in READERS:
            expected = sorted(
                alert_id
                for stream_id, its in alerts.items()
                for alert_id in its
                if (who := owner.get(stream_id)) and may_see(reader, stream_id, who)
            )
            assert await pages(table, reader, None) == expected
            for stream_id in STREAMS:
                its = [each for each in expected if each in alerts[stream_id]]
                assert await pages(table, reader, stream_id) == its
        for each in OWNERS:
            expected = sorted(
                i for stream_id, its in alerts.items() if owner.get(stream_id) == each for i in its
            )
            assert [event_id_of(a) for a in (await hooks.behind(hook[each], 0)).events] == expected


async def step(
    chance: random.Random,
    database: Database,
    rows: Accounts,
    owner: dict[str, str | None],
    alerts: dict[str, list[int]],
) -> None:
    stream_id = chance.choice(STREAMS)
    before = owner.get(stream_id)
    if chance.random() < 0.6:
        new = NewAlert(stream_id, "service:sentry", "low", "m", 0)
        (stored,) = await AlertTable(database).store([new])
        assert isinstance(stored, StoredAlert) == (before is not None)
        if isinstance(stored, StoredAlert):
            alerts[stream_id].append(stored.alert_id)
        return
    who = chance.choice(OWNERS)
    kind = chance.choice(["claim", "transfer", "history", "sql", "free"])
    if kind == "claim" or stream_id not in owner:
        owner[stream_id] = await StreamTable(database).claim(stream_id, who)
    else:
        owner[stream_id] = await change_owner(kind, stream_id, who, database, rows)
    if owner[stream_id] != before and (kind != "history" or before is None):
        alerts[stream_id] = []


async def change_owner(
    kind: str, stream_id: str, who: str, database: Database, rows: Accounts
) -> str | None:
    ownership = StreamOwnershipTable(database, None)
    if kind == "free":
        await ownership.free(stream_id)
        return None
    if kind == "sql":
        rows.execute("update relay.streams set owner_id = %s where stream_id = %s", who, stream_id)
    else:
        await ownership.transfer(stream_id, who, with_history=kind == "history")
    return who


@pytest.fixture
def accounts_rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)
