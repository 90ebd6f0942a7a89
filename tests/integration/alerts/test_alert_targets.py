"""The outbox as the database has it: what waits for a target, by its rules, in one order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from attrs import evolve

from relay.alerts.targets.delivery import Delivery
from relay.alerts.targets.webhook_message import message_of
from relay.model.alerts.alert import NewAlert, StoredAlert
from relay.model.targets.alert_target import AlertTarget, Cooldown, NewTarget, TargetRules
from relay.model.targets.outbox import (
    EventPage,
    FailedDelivery,
    OutboxProgress,
    event_id_of,
    kind_of,
)
from relay.postgres.database import Database, open_database
from relay.postgres.tables import outbox_pages
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts

FIRE = NewAlert("garage-1", "user:ada", "high", "fire", 0)
LASTS = timedelta(seconds=9)
ROOM = {"webhook": 9}
NEW = NewTarget("https://hook", "s", owner_id="ada")
PREFIX = TargetRules(stream_prefix="garage-")


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        streams = StreamTable(database)
        for stream_id, owner_id in (("garage-1", "ada"), ("door", "ada"), ("garage-2", "bob")):
            await streams.claim(stream_id, owner_id)
        yield database


@pytest.fixture
def rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)


async def made(database: Database, new: NewTarget) -> AlertTarget:
    table = AlertTargetTable(database)
    return await table.find(await table.add(new))


async def raise_all(database: Database, *alerts: NewAlert) -> None:
    await AlertTable(database).store(alerts)


def store_event(rows: Accounts, stream_id: str, kind: str) -> int:
    [(event_id,)] = rows.execute(
        "insert into relay.stream_events (event_id, stream_id, owner_id, life, kind, epoch)"
        " select relay.last_outbox_id() + 1, stream_id, owner_id, life, %s, 7 from relay.streams"
        " where stream_id = %s returning event_id",
        kind,
        stream_id,
    )
    return int(event_id)


def told(page: EventPage) -> list[str]:
    return [
        each.message if isinstance(each, StoredAlert) else f"{each.kind} {each.stream_id}"
        for each in page.events
    ]


async def test_the_rules_decide_what_waits_for_a_target(database: Database, rows: Accounts) -> None:
    everything = ("alert", "stream.online", "stream.offline")
    targets = {
        "owner": NEW,
        "owner, prefix": evolve(NEW, rules=PREFIX),
        "prefix": evolve(NEW, owner_id=None, rules=PREFIX),
        "severe": evolve(NEW, rules=TargetRules(min_severity="high")),
        "online": evolve(NEW, rules=TargetRules(events=("stream.online",))),
        "all": evolve(NEW, owner_id=None, rules=TargetRules(everything, stream_prefix="")),
        "one": evolve(NEW, owner_id=None, stream_id="door", rules=TargetRules(everything)),
    }
    found = {name: await made(database, new) for name, new in targets.items()}
    await raise_all(database, evolve(FIRE, message="low", severity="low"))
    store_event(rows, "garage-1", "stream.online")
    await raise_all(database, FIRE, evolve(FIRE, stream_id="garage-2", message="bob's"))
    store_event(rows, "door", "stream.offline")
    await raise_all(database, evolve(FIRE, stream_id="door", message="door"))
    table = AlertTargetTable(database)
    pages = {name: told(await table.behind(each, each.position)) for name, each in found.items()}
    assert pages == {
        "owner": ["low", "fire", "door"],
        "owner, prefix": ["low", "fire"],
        "prefix": ["low", "fire", "bob's"],
        "severe": ["fire", "door"],
        "online": ["stream.online garage-1"],
        "all": [
            *("low", "stream.online garage-1", "fire", "bob's"),
            *("stream.offline door", "door"),
        ],
        "one": ["stream.offline door", "door"],
    }


async def test_a_page_goes_through_what_its_rules_leave_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no target is claimed again and again for what it does not want."""
    monkeypatch.setattr(outbox_pages, "MAX_SCANNED_ALERTS", 10)
    table = AlertTargetTable(database)
    severe = await made(database, evolve(NEW, rules=TargetRules(min_severity="critical")))
    low = evolve(FIRE, severity="low")
    await raise_all(database, *[low] * 25, evolve(FIRE, severity="critical", message="worst"))
    lease, pages = uuid4(), []
    while claimed := await table.claim(lease, lasts=LASTS, room=ROOM):
        (target,) = claimed
        page = await table.behind(target, target.position)
        pages.append(told(page))
        await advance(table, target, lease, page.through)
    assert pages == [[], [], ["worst"]]
    assert (await table.all())[0][1] == 0
    assert severe.target_id == target.target_id


async def advance(table: AlertTargetTable, target: AlertTarget, lease: UUID, position: int) -> None:
    assert await table.advance(target, lease, OutboxProgress(position), lasts=LASTS)
    await table.release(target, lease)


async def test_alerts_and_events_come_in_one_order_page_by_page(
    database: Database, rows: Accounts
) -> None:
    table = AlertTargetTable(database)
    rules = TargetRules(("alert", "stream.online"))
    target = await made(database, evolve(NEW, rules=rules))
    expected: list[int] = []
    for number in range(60):
        if number % 3:
            expected.append(store_event(rows, "door", "stream.online"))
        else:
            [stored] = await AlertTable(database).store([FIRE])
            assert isinstance(stored, StoredAlert)
            expected.append(stored.alert_id)
    assert (await table.all())[0][1] == 60
    position, got = target.position, []
    while (page := await table.behind(target, position)).events:
        got += [event_id_of(each) for each in page.events]
        assert page.through >= got[-1]
        position = page.through
    assert got == expected


async def test_an_id_of_an_alert_is_greater_than_those_of_events(
    database: Database, rows: Accounts
) -> None:
    """Also when the clock is behind."""
    event_id = store_event(rows, "door", "stream.online")
    rows.execute("update relay.stream_events set event_id = event_id + 3600000000")
    [stored] = await AlertTable(database).store([FIRE])
    assert isinstance(stored, StoredAlert)
    assert stored.alert_id > event_id + 3_600_000_000


async def test_events_of_a_former_life_reach_nobody(database: Database, rows: Accounts) -> None:
    table = AlertTargetTable(database)
    rules = TargetRules(("stream.online",))
    of_ada = await made(database, evolve(NEW, rules=rules))
    of_bob = await made(database, evolve(NEW, owner_id="bob", rules=rules))
    store_event(rows, "door", "stream.online")
    rows.execute("update relay.streams set owner_id = 'bob' where stream_id = 'door'")
    for target in (of_ada, of_bob):
        assert (await table.behind(target, target.position)).events == []
    store_event(rows, "door", "stream.online")
    assert len((await table.behind(of_bob, of_bob.position)).events) == 1


@pytest.mark.parametrize(
    "change",
    [
        "happened_at = 'infinity'",
        "happened_at = '-infinity'",
        "happened_at = '294276-01-01'",
        "happened_at = '4000-01-01 BC'",
        "kind = 'stream.online'",
    ],
)
async def test_an_event_that_was_written_by_hand_holds_up_nothing(
    database: Database, rows: Accounts, change: str
) -> None:
    table = AlertTargetTable(database)
    rules = TargetRules(("alert", "stream.online"))
    target = await made(database, evolve(NEW, rules=rules))
    store_event(rows, "door", "stream.online")
    rows.execute(f"update relay.stream_events set {change}")
    await raise_all(database, FIRE)
    page = await table.behind(target, target.position)
    assert told(page) == ["stream.online door", "fire"]
    assert all(message_of(Delivery(each)) for each in page.events)


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "294276-01-01", "4000-01-01 BC"])
@pytest.mark.parametrize("column", ["created_at", "try_again_at", "leased_until", "given_up_at"])
async def test_a_target_with_an_odd_time_holds_up_no_other(
    database: Database, rows: Accounts, column: str, moment: str
) -> None:
    """Operators may pause one with 'infinity'."""
    table = AlertTargetTable(database)
    odd, good = await made(database, NEW), await made(database, NEW)
    rows.execute(
        f"update relay.alert_targets set {column} = %s where target_id = %s",
        moment,
        odd.target_id,
    )
    await raise_all(database, FIRE)
    await table.next_due()
    assert len(await table.all()) == 2
    assert (await table.find(odd.target_id)).target_id == odd.target_id
    claimed = await table.claim(uuid4(), lasts=LASTS, room=ROOM)
    assert good.target_id in {each.target_id for each in claimed}
    assert await table.next_due() is not None


async def test_a_cooldown_is_kept_with_the_position(database: Database) -> None:
    table = AlertTargetTable(database)
    target = await made(database, evolve(NEW, rules=TargetRules(cooldown=60)))
    await raise_all(database, FIRE, evolve(FIRE, stream_id="door"))
    lease = uuid4()
    (target,) = await table.claim(lease, lasts=LASTS, room=ROOM)
    first, second = (await table.behind(target, target.position)).events
    cooldown = Cooldown("garage-1", kind_of(first), event_id_of(first), 0)
    progress = OutboxProgress(event_id_of(first), delivered=1, cooldowns=[cooldown])
    assert await table.advance(target, lease, progress, lasts=LASTS)
    page = await table.behind(target, event_id_of(first))
    assert page.events == [second]
    assert page.cooldowns == []
    await raise_all(database, FIRE)
    cooldown = evolve(cooldown, suppressed=3)
    progress = OutboxProgress(event_id_of(second), suppressed=3, cooldowns=[cooldown])
    assert await table.advance(target, lease, progress, lasts=LASTS)
    assert (await table.behind(target, event_id_of(second))).cooldowns == [cooldown]
    (now, waiting), *_ = await table.all()
    assert (now.delivered, now.suppressed, waiting) == (1, 3, 1)
    assert not await table.advance(target, uuid4(), progress, lasts=LASTS)
    await table.remove(target.target_id)


async def test_each_kind_is_claimed_as_often_as_there_is_room(database: Database) -> None:
    table = AlertTargetTable(database)
    for kind in ("webhook", "webhook", "webhook", "ntfy", "mqtt"):
        await table.add(evolve(NEW, kind=kind))
    await raise_all(database, FIRE)
    claimed = await table.claim(uuid4(), lasts=LASTS, room={"webhook": 2, "ntfy": 5})
    assert sorted(each.kind for each in claimed) == ["ntfy", "webhook", "webhook"]
    assert len(await table.claim(uuid4(), lasts=LASTS, room={"webhook": 2, "ntfy": 5})) == 1


async def test_the_one_that_was_served_longest_ago_goes_first(database: Database) -> None:
    table, lease = AlertTargetTable(database), uuid4()
    behind = await made(database, NEW)
    await raise_all(database, FIRE, FIRE)
    ahead = await made(database, NEW)
    await raise_all(database, FIRE)
    order = []
    for _ in range(4):
        (claimed,) = await table.claim(lease, lasts=LASTS, room={"webhook": 1})
        order.append(claimed.target_id)
        await table.release(claimed, lease)
    assert order == 2 * [behind.target_id, ahead.target_id]


async def test_one_that_is_gone_is_forgotten_with_its_cooldowns(
    database: Database, rows: Accounts
) -> None:
    table = AlertTargetTable(database)
    await table.add(evolve(NEW, rules=TargetRules(cooldown=60)))
    await raise_all(database, FIRE)
    lease = uuid4()
    (target,) = await table.claim(lease, lasts=LASTS, room=ROOM)
    progress = OutboxProgress(
        target.position + 1, delivered=1, cooldowns=[Cooldown("door", "alert", 1, 0)]
    )
    assert await table.advance(target, lease, progress, lasts=LASTS)
    await table.forget(target, uuid4())
    assert len(await table.all()) == 1
    await table.forget(target, lease)
    assert await table.all() == []
    assert rows.execute("select * from relay.target_cooldowns") == []


async def test_a_relay_of_before_finds_the_webhooks_that_it_understands(
    database: Database, rows: Accounts
) -> None:
    """While relays are replaced one by one, it goes on posting to them."""
    table = AlertTargetTable(database)
    plain = await table.add(NEW)
    await table.add(evolve(NEW, kind="ntfy"))
    await table.add(evolve(NEW, rules=PREFIX))
    assert rows.execute("select webhook_id, owner_id from relay.webhooks") == [(plain, "ada")]
    rows.execute("update relay.webhooks set position = position + 1, failures = 2")
    rows.execute(
        "insert into relay.webhooks (webhook_id, url, secret, owner_id, position)"
        " values ('wh_old', 'https://x', 's', 'ada', 0)"
    )
    assert (await table.find("wh_old")).rules == TargetRules()
    rows.execute("delete from relay.webhooks")
    assert len(await table.all()) == 2


async def test_a_failure_long_after_another_one_is_the_first_again(
    database: Database, rows: Accounts
) -> None:
    """In between, there was nothing to deliver, or relay did not run."""
    table, lease = AlertTargetTable(database), uuid4()
    target = await made(database, NEW)
    failure = FailedDelivery("no", timedelta(0), timedelta(days=1), for_good=False)
    for hours_ago, is_given_up in ((30, False), (1, True)):
        rows.execute("update relay.alert_targets set lease = %s", lease)
        assert not await table.failed(target, lease, failure)
        rows.execute(
            "update relay.alert_targets set lease = %s, failing_since = now() - interval '30 h',"
            " try_again_at = now() - %s::interval",
            *(lease, f"{hours_ago} h"),
        )
        assert await table.failed(target, lease, failure) == is_given_up


async def test_what_is_known_of_cooldowns_goes_when_they_are_over(
    database: Database, rows: Accounts
) -> None:
    target = await made(database, evolve(NEW, rules=TargetRules(cooldown=60)))
    at = 1_700_000_000_000_000
    rows.execute("update relay.alert_targets set position = %s", at)
    for stream_id, seconds, suppressed in (
        ("door", 60, 0),
        ("garage-1", 59, 0),
        ("garage-2", 60, 3),
        ("gone", 60, 3),
    ):
        rows.execute(
            "insert into relay.target_cooldowns (target_id, stream_id, kind, delivered_id,"
            " suppressed) values (%s, %s, 'alert', %s, %s)",
            *(target.target_id, stream_id, at - seconds * 1_000_000, suppressed),
        )
    pruner = AlertPruner(database)
    assert await pruner.remove_cooldowns(most=1) == 1
    assert await pruner.remove_cooldowns(most=9) == 1
    assert await pruner.remove_cooldowns(most=9) == 0
    left = rows.execute("select stream_id from relay.target_cooldowns order by 1")
    assert left == [("garage-1",), ("garage-2",)]
