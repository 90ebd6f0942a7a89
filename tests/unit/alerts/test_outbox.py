"""Alerts are posted in order, later and later where that fails, and never hold up one another."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import pytest
import trio
from attrs import define, evolve, field

from relay.alerts import outbox
from relay.alerts.outbox import (
    DELIVERY_TIMEOUT,
    LEASE_TIME,
    MAX_ACTIVE_TARGETS,
    MAX_DELIVERY_BACKOFF,
    OUTBOX_POLL_INTERVAL,
    Outbox,
)
from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    TargetAdapter,
)
from relay.alerts.targets.webhook import WEBHOOK_KIND, WebhookAdapter
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.supervisor import PROGRESS_TIMEOUT, Supervisor
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget, Cooldown, TargetRules
from relay.model.targets.outbox import (
    EventPage,
    FailedDelivery,
    OutboxEvent,
    OutboxProgress,
    event_id_of,
    kind_of,
)
from relay.model.targets.stream_event import StreamEvent, StreamEventKind
from relay.outgoing.webhook_client import Undelivered

pytestmark = pytest.mark.mock_clock

PAGE = 3
FIVE_HOURS = 5 * 3600.0


@define(eq=False)
class Row:
    """A target in the table."""

    target: AlertTarget
    failing_since: float | None = None
    due: float = -math.inf
    given_up: bool = False
    lease: UUID | None = None
    leased_until: float = -math.inf
    cooldowns: dict[tuple[str, str], Cooldown] = field(factory=dict)


@define(eq=False)
class TargetQueue:
    rows: dict[str, Row] = field(factory=dict)
    events: list[OutboxEvent] = field(factory=list)
    claims: int = 0
    before_query: Callable[[], object] = field(default=lambda: None)
    hangs: bool = False
    odd: str | None = None
    """The target whose row the database does not take."""

    def add(self, name: str, *, kind: str = WEBHOOK_KIND, cooldown: int = 0) -> None:
        target = AlertTarget(
            *(name, kind, f"https://{name}", "whsec_AAAA", 0, "ann", None, datetime.now(UTC)),
            *(0, 0, None, None, None),
            rules=TargetRules(cooldown=cooldown),
        )
        self.rows[name] = Row(target)

    def raise_alerts(self, *messages: str) -> None:
        for message in messages:
            number = event_id_of(self.events[-1]) + 1 if self.events else 1
            self.events.append(StoredAlert(number, "s", "ann", "x", "low", message, 0))

    def behind_position(self, position: int) -> list[OutboxEvent]:
        return [each for each in self.events if event_id_of(each) > position]

    async def claim(
        self, lease: UUID, *, lasts: timedelta, room: Mapping[str, int]
    ) -> list[AlertTarget]:
        self.claims += 1
        if self.hangs:
            await trio.sleep_forever()
        await self._work()
        now, left = trio.current_time(), dict(room)
        claimed: list[AlertTarget] = []
        for row in sorted(self.rows.values(), key=lambda row: row.leased_until):
            free = row.leased_until < now and row.due <= now and not row.given_up
            waits = self.behind_position(row.target.position)
            if free and waits and left.get(row.target.kind, 0) > 0:
                left[row.target.kind] -= 1
                row.lease, row.leased_until = lease, now + lasts.total_seconds()
                claimed.append(row.target)
        return claimed

    async def next_due(self) -> float | None:
        await self._work()
        now = trio.current_time()
        times = [max(row.due, row.leased_until) for row in self.rows.values() if not row.given_up]
        return min((time - now for time in times if time > now), default=None)

    async def behind(self, target: AlertTarget, position: int) -> EventPage:
        await self._work()
        page = self.behind_position(position)[:PAGE]
        messages = [each.message for each in page if isinstance(each, StoredAlert)]
        if "too slow to read" in messages:
            page = page[:1]
            if messages[0] == "too slow to read":
                raise StoreUnavailable
        if "unreadable" in messages:
            page = page[:1]  # as the table does
            if messages[0] == "unreadable":
                raise StoreRejects("odd")
        through = event_id_of(page[-1]) if page else position
        cooldowns = self.rows[target.target_id].cooldowns
        return EventPage(page, through, [*cooldowns.values()])

    async def next_id(self, target: AlertTarget, position: int) -> int | None:
        await self._work()
        behind = self.behind_position(position)
        return event_id_of(behind[0]) if behind else None

    async def advance(
        self, target: AlertTarget, lease: UUID, progress: OutboxProgress, *, lasts: timedelta
    ) -> bool:
        await self._work()
        if target.target_id == self.odd:
            raise StoreRejects("odd")
        row = self.rows[target.target_id]
        if row.lease != lease:
            return False
        row.target = evolve(
            row.target,
            position=progress.position,
            delivered=row.target.delivered + progress.delivered,
            suppressed=row.target.suppressed + progress.suppressed,
        )
        if progress.delivered:
            row.target = evolve(row.target, failures=0)
            row.failing_since = None
        row.cooldowns |= {(each.stream_id, each.kind): each for each in progress.cooldowns}
        row.leased_until = trio.current_time() + lasts.total_seconds()
        return True

    async def failed(self, target: AlertTarget, lease: UUID, failure: FailedDelivery) -> bool:
        await self._work()
        row, now = self.rows[target.target_id], trio.current_time()
        row.target = evolve(row.target, failures=row.target.failures + 1, last_error=failure.why)
        if row.failing_since is None:
            row.failing_since = now
        row.due, row.leased_until = now + failure.pause.total_seconds(), -math.inf
        limit = now - failure.give_up_after.total_seconds()
        row.given_up = failure.for_good or row.failing_since < limit
        return row.given_up

    async def release(self, target: AlertTarget, lease: UUID) -> None:
        await self._work()
        self.rows[target.target_id].leased_until = trio.current_time()

    async def forget(self, target: AlertTarget, lease: UUID) -> None:
        await self._work()
        del self.rows[target.target_id]

    async def _work(self) -> None:
        self.before_query()
        await trio.sleep(0.01)


@define(eq=False)
class WebhookClient:
    """Notes what is posted, and when; `answer` decides what becomes of it."""

    answer: Callable[[str], Any] = field(default=lambda _url: None)
    posted: list[tuple[str, str]] = field(factory=list)
    times: list[float] = field(factory=list)
    ids: list[str] = field(factory=list)
    suppressed: list[int | None] = field(factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        try:
            self.times.append(trio.current_time())
            self.ids.append(headers["webhook-id"])
            outcome = self.answer(url)
            if isinstance(outcome, float):
                await trio.sleep(outcome)
            elif outcome is not None:
                raise outcome
            data = json.loads(body)["data"]
            self.posted.append((url.removeprefix("https://"), data["message"]))
            self.suppressed.append(data.get("suppressed"))
        finally:
            self.under_way -= 1

    def got(self, name: str) -> list[str]:
        return [message for to, message in self.posted if to == name]


@define(eq=False)
class DeliverySetup:
    table: TargetQueue = field(factory=TargetQueue)
    webhook_client: WebhookClient = field(factory=WebhookClient)
    adapters: dict[str, TargetAdapter] = field(factory=dict)
    metrics: Metrics = field(factory=Metrics)
    activity: Activity = field(factory=always_active)

    def service(self) -> Outbox:
        adapters = {WEBHOOK_KIND: WebhookAdapter(self.webhook_client), **self.adapters}
        return Outbox(self.table, adapters, self.metrics, self.activity)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Outbox]:
        service = self.service()
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            yield service
            nursery.cancel_scope.cancel()


@pytest.fixture
def post() -> DeliverySetup:
    return DeliverySetup()


def failing(*names: str, for_good: bool = False) -> Callable[[str], Undelivered | None]:
    def answer(url: str) -> Undelivered | None:
        if url.removeprefix("https://") in names:
            return Undelivered("status", status=410 if for_good else 500)
        return None

    return answer


MESSAGES = [f"alert {number}" for number in range(3 * PAGE + 1)]


async def test_all_alerts_are_posted_in_order_to_each(post: DeliverySetup) -> None:
    for name in ("a", "b"):
        post.table.add(name)
    async with post.running() as service:
        post.table.raise_alerts(*MESSAGES[:4])
        service.wake()
        await trio.sleep(5)
        post.table.raise_alerts(*MESSAGES[4:])
        service.wake()
        await trio.sleep(5)
    assert post.webhook_client.got("a") == post.webhook_client.got("b") == MESSAGES
    assert post.metrics.webhook_alerts == {"delivered": 2 * len(MESSAGES)}
    assert len(set(post.webhook_client.ids)) == len(post.webhook_client.ids)


async def test_an_alert_that_cannot_be_read_is_skipped(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("1", "unreadable", "3")
    async with post.running():
        await trio.sleep(60)
    assert post.webhook_client.got("a") == ["1", "3"]
    assert post.metrics.alerts_unreadable == 1


async def test_an_alert_that_takes_too_long_to_read_is_skipped_after_some_attempts(
    post: DeliverySetup,
) -> None:
    post.table.add("a")
    post.table.raise_alerts("1", "too slow to read", "3", "too slow to read", "5")
    async with post.running():
        await trio.sleep(LEASE_TIME.total_seconds())
        assert post.webhook_client.got("a") == ["1"]
        await trio.sleep(8 * LEASE_TIME.total_seconds())
    assert post.webhook_client.got("a") == ["1", "3", "5"]
    assert post.metrics.alerts_unreadable == 2


async def test_while_nobody_is_connected_the_table_is_asked_when_something_is_due() -> None:
    post = DeliverySetup(activity=Activity())
    post.table.add("a")
    async with post.running() as service:
        await trio.sleep(10 * REST_INTERVAL - 1)
        assert post.table.claims == 10
        post.webhook_client.answer = failing("a")
        post.table.raise_alerts("told")
        service.wake()
        await trio.sleep(1)
        assert post.webhook_client.got("a") == []
        post.webhook_client.answer = lambda _url: None
        await trio.sleep(2 * outbox.FIRST_DELIVERY_BACKOFF + OUTBOX_POLL_INTERVAL)
        assert post.webhook_client.got("a") == ["told"]
        await trio.sleep(10)
        before = post.table.claims
        await trio.sleep(REST_INTERVAL / 2)
        assert post.table.claims == before
        post.table.raise_alerts("not told")
        post.activity.note(active=True)
        await trio.sleep(1)
        assert post.webhook_client.got("a") == ["told", "not told"]


async def test_while_nobody_is_connected_a_lease_that_another_relay_left_is_taken_over() -> None:
    post = DeliverySetup(activity=Activity())
    post.table.add("a")
    post.table.raise_alerts("left")
    row = post.table.rows["a"]
    row.lease, row.leased_until = UUID(int=1), trio.current_time() + LEASE_TIME.total_seconds()
    async with post.running():
        await trio.sleep(LEASE_TIME.total_seconds() + OUTBOX_POLL_INTERVAL)
    assert post.webhook_client.got("a") == ["left"]


async def test_one_that_is_told_of_is_posted_at_once_and_others_soon(post: DeliverySetup) -> None:
    post.table.add("a")
    async with post.running() as service:
        await trio.sleep(10.5)
        post.table.raise_alerts("told")
        service.wake()
        await trio.sleep(0.1)
        assert post.webhook_client.got("a") == ["told"]
        post.table.raise_alerts("not told")
        await trio.sleep(OUTBOX_POLL_INTERVAL + 0.1)
        assert post.webhook_client.got("a") == ["told", "not told"]


async def test_while_nothing_happens_the_table_is_asked_now_and_then(post: DeliverySetup) -> None:
    async with post.running():
        await trio.sleep(1000)
    assert 1000 / OUTBOX_POLL_INTERVAL - 10 < post.table.claims <= 1000 / OUTBOX_POLL_INTERVAL + 1


async def test_one_that_fails_is_tried_again_with_the_same_id_and_nothing_overtakes(
    post: DeliverySetup,
) -> None:
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.webhook_client.answer = failing("a")
    async with post.running():
        await trio.sleep(60)
        assert post.webhook_client.posted == []
        assert len(post.webhook_client.ids) > 2
        assert set(post.webhook_client.ids) == {"msg_a_1"}
        post.webhook_client.answer = failing()
        await trio.sleep(2 * MAX_DELIVERY_BACKOFF)
        assert post.webhook_client.got("a") == MESSAGES


@pytest.mark.slow
async def test_it_is_tried_later_and_later_and_given_up_when_patience_ends(
    post: DeliverySetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "GIVE_UP_AFTER", timedelta(hours=5))
    post.table.add("a")
    post.table.raise_alerts("a")
    post.webhook_client.answer = failing("a")
    async with post.running():
        await trio.sleep(FIVE_HOURS + 5 * MAX_DELIVERY_BACKOFF)
    times = post.webhook_client.times
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[0] <= 3 + OUTBOX_POLL_INTERVAL + 0.1
    assert all(pause <= 1.5 * MAX_DELIVERY_BACKOFF + OUTBOX_POLL_INTERVAL + 0.1 for pause in pauses)
    assert min(pauses[10:]) >= 0.5 * MAX_DELIVERY_BACKOFF
    assert len({round(pause) for pause in pauses[10:]}) > 10  # not all in step
    assert FIVE_HOURS < times[-1] - times[0] < FIVE_HOURS + 2 * MAX_DELIVERY_BACKOFF
    assert post.table.rows["a"].given_up
    assert post.metrics.webhook_alerts == {"failed": len(times), "given_up": 1}


async def test_one_that_says_it_is_gone_is_given_up_at_once(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("a")
    post.webhook_client.answer = failing("a", for_good=True)
    async with post.running():
        await trio.sleep(2 * MAX_DELIVERY_BACKOFF)
    assert len(post.webhook_client.times) == 1
    assert post.table.rows["a"].given_up


async def test_one_that_hangs_is_left_in_time_and_holds_up_no_other(post: DeliverySetup) -> None:
    post.table.add("hangs")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.webhook_client.answer = lambda url: math.inf if "hangs" in url else None
    async with post.running():
        await trio.sleep(1)
        assert post.webhook_client.got("a") == MESSAGES
        await trio.sleep(DELIVERY_TIMEOUT + 1)
        assert post.table.rows["hangs"].target.last_error == "no answer within 10 s"
        assert post.webhook_client.got("hangs") == []


async def test_so_many_are_posted_to_at_once_and_all_in_the_end(post: DeliverySetup) -> None:
    names = [f"w{number}" for number in range(3 * MAX_ACTIVE_TARGETS)]
    for name in names:
        post.table.add(name)
    post.table.raise_alerts("a", "b")
    post.webhook_client.answer = lambda _url: 5.0
    async with post.running():
        await trio.sleep(100)
    assert post.webhook_client.most_under_way == MAX_ACTIVE_TARGETS
    assert all(post.webhook_client.got(name) == ["a", "b"] for name in names)


async def test_a_receiver_that_is_slow_makes_room_and_misses_nothing(
    post: DeliverySetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_ACTIVE_TARGETS", 1)
    monkeypatch.setattr(outbox, "MAX_SERVING_TIME", 5.0)
    for name in ("slow", "a"):
        post.table.add(name, cooldown=1 if name == "slow" else 0)
    post.table.raise_alerts(*MESSAGES[: 2 * PAGE])
    for number, event in enumerate(post.table.events):  # some are suppressed
        at = 1_000_000 * (number - number % 2) + number
        assert isinstance(event, StoredAlert)
        post.table.events[number] = evolve(event, alert_id=at + 1)
    post.webhook_client.answer = lambda url: 9.0 if "slow" in url else None
    async with post.running():
        await trio.sleep(15)
        assert post.webhook_client.got("a")[:1] == MESSAGES[:1]
        await trio.sleep(60)
    assert post.webhook_client.got("a") == MESSAGES[: 2 * PAGE]
    assert post.webhook_client.got("slow") == MESSAGES[: 2 * PAGE : 2]
    assert post.table.rows["slow"].target.suppressed == PAGE


async def test_a_bug_with_one_stops_no_other(post: DeliverySetup) -> None:
    post.table.add("bug")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.webhook_client.answer = lambda url: ZeroDivisionError() if "bug" in url else None
    async with post.running():
        await trio.sleep(10)
    assert post.webhook_client.got("a") == MESSAGES
    assert post.table.rows["bug"].target.last_error == "relay failed: ZeroDivisionError"


async def test_one_whose_row_the_database_rejects_stops_no_other(post: DeliverySetup) -> None:
    post.table.add("odd")
    post.table.add("a")
    post.table.odd = "odd"
    post.table.raise_alerts(*MESSAGES)
    async with post.running():
        await trio.sleep(10)
    assert post.webhook_client.got("a") == MESSAGES
    assert post.webhook_client.got("odd") == MESSAGES[:1]


async def test_a_poisoned_alert_stops_none_behind_it(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("before")
    poisoned = StoredAlert(2, "s", "ann", "x", "low", "m", 0, {"poison": object()})
    post.table.events.append(poisoned)
    post.table.raise_alerts("behind")
    async with post.running():
        await trio.sleep(10)
    assert post.webhook_client.got("a") == ["before", "behind"]
    assert post.metrics.webhook_alerts["delivered"] == 2
    assert post.metrics.alerts_unreadable == 1


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7])
async def test_the_store_away_again_and_again_loses_none_and_keeps_their_order(
    post: DeliverySetup, period: int
) -> None:
    """What was posted when the store went away may be posted again."""
    queries = 0

    def before_query() -> None:
        nonlocal queries
        queries += 1
        if queries < 60 and queries % period == 0:
            raise StoreUnavailable

    post.table.add("a")
    post.table.before_query = before_query
    post.table.raise_alerts(*MESSAGES)
    async with post.running():
        await trio.sleep(100 * LEASE_TIME.total_seconds())
    got = post.webhook_client.got("a")
    assert [each for number, each in enumerate(got) if each not in got[:number]] == MESSAGES
    assert got == sorted(got, key=MESSAGES.index)


@pytest.mark.parametrize("moment", [0.005, 0.015, 0.1, 0.5, 1.2])
async def test_one_that_is_stopped_leaves_it_to_the_next_at_once(
    post: DeliverySetup, moment: float
) -> None:
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.webhook_client.answer = lambda _url: 0.2
    async with post.running():
        await trio.sleep(moment)
    assert post.table.rows["a"].leased_until <= trio.current_time()
    async with post.running():
        await trio.sleep(5)
    got = post.webhook_client.got("a")
    assert sorted(set(got), key=MESSAGES.index) == MESSAGES


async def test_two_relays_do_not_post_the_same(post: DeliverySetup) -> None:
    for number in range(5):
        post.table.add(f"w{number}")
    post.webhook_client.answer = lambda _url: 0.2
    async with post.running() as one, post.running() as other:
        for number in range(0, len(MESSAGES), 2):
            post.table.raise_alerts(*MESSAGES[number : number + 2])
            one.wake()
            other.wake()
            await trio.sleep(0.3)
        await trio.sleep(30)
    assert all(post.webhook_client.got(f"w{number}") == MESSAGES for number in range(5))
    assert len(post.webhook_client.ids) == 5 * len(MESSAGES)


async def test_a_service_that_hangs_is_ended_and_started_again(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("a")
    post.table.hangs = True
    supervisor = Supervisor({"alert-outbox": post.service()})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(PROGRESS_TIMEOUT - 1)
        post.table.hangs = False
        assert supervisor.tasks["alert-outbox"].restarts == 0
        await trio.sleep(2)
        assert supervisor.tasks["alert-outbox"].restarts == 1
        await trio.sleep(2 * PROGRESS_TIMEOUT)
        assert supervisor.tasks["alert-outbox"].restarts == 1
        nursery.cancel_scope.cancel()
    assert post.webhook_client.got("a") == ["a"]


# -- rules, and other kinds of targets


def at(second: float, message: str, stream_id: str = "s") -> StoredAlert:
    return StoredAlert(int(second * 1e6), stream_id, "ann", "x", "low", message, 0)


async def test_a_cooldown_leaves_out_what_comes_too_soon_and_the_next_delivery_says_how_much(
    post: DeliverySetup,
) -> None:
    post.table.add("a", cooldown=60)
    post.table.events += [
        *(at(100, "first"), at(101, "too soon"), at(102, "another stream", "door")),
        *(at(159.9, "still too soon"), at(160.1, "later"), at(500, "last")),
    ]
    async with post.running():
        await trio.sleep(10)
    assert post.webhook_client.got("a") == ["first", "another stream", "later", "last"]
    assert post.webhook_client.suppressed == [None, None, 2, None]
    assert post.table.rows["a"].target.suppressed == 2
    assert post.table.rows["a"].target.delivered == 4
    assert post.metrics.target_events == {
        (WEBHOOK_KIND, "delivered"): 4,
        (WEBHOOK_KIND, "suppressed"): 2,
    }


async def test_alerts_and_events_of_a_stream_do_not_suppress_each_other(
    post: DeliverySetup,
) -> None:
    sink = Sink()
    post.adapters["sink"] = sink
    post.table.add("a", kind="sink", cooldown=60)
    for second, kind in ((1, "stream.online"), (2, "stream.offline"), (3, "stream.online")):
        event = StreamEvent(second * 1_000_000, "s", "ann", cast("StreamEventKind", kind), 7, 0)
        post.table.events.append(event)
    post.table.events.append(at(4, "alert"))
    async with post.running():
        await trio.sleep(10)
    kinds = [kind_of(each.event) for each in sink.deliveries]
    assert kinds == ["stream.online", "stream.offline", "alert"]


async def test_a_suppressed_event_is_counted_once_though_what_follows_fails_again_and_again(
    post: DeliverySetup,
) -> None:
    post.table.add("a", cooldown=60)
    post.table.events += [at(100, "first"), at(101, "too soon"), at(200, "second")]
    answers = iter([None, Undelivered("status 500"), Undelivered("status 500"), None])
    post.webhook_client.answer = lambda _url: next(answers)
    async with post.running():
        await trio.sleep(60)
    assert post.webhook_client.got("a") == ["first", "second"]
    assert post.webhook_client.suppressed == [None, 1]
    assert post.table.rows["a"].target.suppressed == 1


@define(eq=False)
class Sink:
    """A kind of target that notes what it is to deliver."""

    outcome: Callable[[], DeliveryOutcome] = Delivered
    seconds: float = 0
    deliveries: list[Delivery] = field(factory=list)
    times: list[float] = field(factory=list)

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        self.times.append(trio.current_time())
        await trio.sleep(self.seconds)
        self.deliveries.append(delivery)
        return self.outcome()

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        return self.outcome()


async def test_one_kind_of_target_holds_up_no_other(post: DeliverySetup) -> None:
    post.adapters["sink"] = Sink(seconds=math.inf)
    for number in range(3 * MAX_ACTIVE_TARGETS):
        post.table.add(f"hangs {number}", kind="sink")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    async with post.running():
        await trio.sleep(2)
        assert post.webhook_client.got("a") == MESSAGES


async def test_a_target_of_an_unknown_kind_is_left_to_other_relays(post: DeliverySetup) -> None:
    post.table.add("a", kind="of a newer relay")
    post.table.raise_alerts("1")
    async with post.running():
        await trio.sleep(60)
    assert post.table.rows["a"].lease is None


async def test_one_that_asks_to_be_left_alone_is(post: DeliverySetup) -> None:
    sink = post.adapters["sink"] = Sink(lambda: RetryLater("busy", after=200.0))
    post.table.add("a", kind="sink")
    post.table.raise_alerts("1")
    async with post.running():
        await trio.sleep(900)
    assert isinstance(sink, Sink)
    assert all(200 <= later - sooner <= 205 for sooner, later in pairwise(sink.times[:3]))


async def test_one_that_is_gone_for_good_is_forgotten_if_its_kind_says_so(
    post: DeliverySetup,
) -> None:
    post.adapters["sink"] = Sink(lambda: GoneForGood("gone", forget=True))
    post.table.add("a", kind="sink")
    post.table.raise_alerts("1")
    async with post.running():
        await trio.sleep(10)
    assert post.table.rows == {}
