"""Alerts are posted in order, later and later where that fails, and never hold up one another."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
import trio
from attrs import define, evolve, field

from relay.alerts import webhooks
from relay.alerts.webhooks import (
    LEASE_TIME,
    MAX_ACTIVE_WEBHOOKS,
    MAX_WEBHOOK_BACKOFF,
    WEBHOOK_POLL_INTERVAL,
    WEBHOOK_TIMEOUT,
    WebhookDelivery,
)
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.supervisor import PROGRESS_TIMEOUT, Supervisor
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alert import StoredAlert
from relay.model.webhook import Webhook
from relay.outgoing.webhook_client import Undelivered

pytestmark = pytest.mark.mock_clock

PAGE = 3
FIVE_HOURS = 5 * 3600.0


@define(eq=False)
class Row:
    """A webhook in the table."""

    webhook: Webhook
    failing_since: float | None = None
    due: float = -math.inf
    given_up: bool = False
    lease: UUID | None = None
    leased_until: float = -math.inf


@define(eq=False)
class WebhookQueue:
    rows: dict[str, Row] = field(factory=dict)
    alerts: list[StoredAlert] = field(factory=list)
    claims: int = 0
    before_query: Callable[[], object] = field(default=lambda: None)
    hangs: bool = False

    def add(self, name: str) -> None:
        webhook = Webhook(
            *(name, f"https://{name}", "whsec_AAAA", 0, "ann", None, datetime.now(UTC)),
            *(0, 0, None, None, None),
        )
        self.rows[name] = Row(webhook)

    def raise_alerts(self, *messages: str) -> None:
        for message in messages:
            number = len(self.alerts) + 1
            self.alerts.append(StoredAlert(number, "s", "ann", "x", "low", message, 0))

    async def claim(self, lease: UUID, *, lasts: timedelta, most: int) -> list[Webhook]:
        self.claims += 1
        if self.hangs:
            await trio.sleep_forever()
        await self._work()
        now = trio.current_time()
        claimed: list[Webhook] = []
        for row in self.rows.values():
            free = row.leased_until < now and row.due <= now and not row.given_up
            if free and row.webhook.position < len(self.alerts) and len(claimed) < most:
                row.lease, row.leased_until = lease, now + lasts.total_seconds()
                claimed.append(row.webhook)
        return claimed

    async def next_due(self) -> float | None:
        await self._work()
        now = trio.current_time()
        times = [max(row.due, row.leased_until) for row in self.rows.values() if not row.given_up]
        return min((time - now for time in times if time > now), default=None)

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]:
        await self._work()
        page = self.alerts[position : position + PAGE]
        if any(each.message == "too slow to read" for each in page):
            page = page[:1]
            if page[0].message == "too slow to read":
                raise StoreUnavailable
        if any(each.message == "unreadable" for each in page):
            page = page[:1]  # as the table does
            if page[0].message == "unreadable":
                raise StoreRejects("odd")
        return page

    async def next_id(self, webhook: Webhook, position: int) -> int | None:
        await self._work()
        return position + 1 if position < len(self.alerts) else None

    async def delivered(
        self, webhook: Webhook, lease: UUID, alert_id: int, *, lasts: timedelta
    ) -> bool:
        await self._work()
        row = self.rows[webhook.webhook_id]
        if row.lease != lease:
            return False
        row.webhook = evolve(row.webhook, position=alert_id, failures=0)
        row.failing_since = None
        row.leased_until = trio.current_time() + lasts.total_seconds()
        return True

    async def failed(
        self,
        webhook: Webhook,
        lease: UUID,
        why: str,
        *,
        pause: timedelta,
        give_up_after: timedelta,
        for_good: bool,
    ) -> bool:
        await self._work()
        row, now = self.rows[webhook.webhook_id], trio.current_time()
        row.webhook = evolve(row.webhook, failures=row.webhook.failures + 1, last_error=why)
        if row.failing_since is None:
            row.failing_since = now
        row.due, row.leased_until = now + pause.total_seconds(), -math.inf
        row.given_up = for_good or row.failing_since < now - give_up_after.total_seconds()
        return row.given_up

    async def release(self, webhook: Webhook, lease: UUID) -> None:
        await self._work()
        self.rows[webhook.webhook_id].leased_until = -math.inf

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
            self.posted.append((url.removeprefix("https://"), json.loads(body)["data"]["message"]))
        finally:
            self.under_way -= 1

    def got(self, name: str) -> list[str]:
        return [message for to, message in self.posted if to == name]


@define(eq=False)
class DeliverySetup:
    table: WebhookQueue = field(factory=WebhookQueue)
    webhook_client: WebhookClient = field(factory=WebhookClient)
    metrics: Metrics = field(factory=Metrics)
    activity: Activity = field(factory=always_active)

    def service(self) -> WebhookDelivery:
        return WebhookDelivery(self.table, self.webhook_client, self.metrics, self.activity)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[WebhookDelivery]:
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
            return Undelivered("status 500", for_good=for_good)
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
        await trio.sleep(2 * webhooks.FIRST_WEBHOOK_BACKOFF + WEBHOOK_POLL_INTERVAL)
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
        await trio.sleep(LEASE_TIME.total_seconds() + WEBHOOK_POLL_INTERVAL)
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
        await trio.sleep(WEBHOOK_POLL_INTERVAL + 0.1)
        assert post.webhook_client.got("a") == ["told", "not told"]


async def test_while_nothing_happens_the_table_is_asked_now_and_then(post: DeliverySetup) -> None:
    async with post.running():
        await trio.sleep(1000)
    assert 1000 / WEBHOOK_POLL_INTERVAL - 10 < post.table.claims <= 1000 / WEBHOOK_POLL_INTERVAL + 1


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
        await trio.sleep(2 * MAX_WEBHOOK_BACKOFF)
        assert post.webhook_client.got("a") == MESSAGES


async def test_it_is_tried_later_and_later_and_given_up_when_patience_ends(
    post: DeliverySetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "GIVE_UP_AFTER", timedelta(hours=5))
    post.table.add("a")
    post.table.raise_alerts("a")
    post.webhook_client.answer = failing("a")
    async with post.running():
        await trio.sleep(3 * FIVE_HOURS)
    times = post.webhook_client.times
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[0] <= 3 + WEBHOOK_POLL_INTERVAL + 0.1
    assert all(pause <= 1.5 * MAX_WEBHOOK_BACKOFF + WEBHOOK_POLL_INTERVAL + 0.1 for pause in pauses)
    assert min(pauses[10:]) >= 0.5 * MAX_WEBHOOK_BACKOFF
    assert len({round(pause) for pause in pauses[10:]}) > 10  # not all in step
    assert FIVE_HOURS < times[-1] - times[0] < FIVE_HOURS + 2 * MAX_WEBHOOK_BACKOFF
    assert post.table.rows["a"].given_up
    assert post.metrics.webhook_alerts == {"failed": len(times), "given_up": 1}


async def test_one_that_says_it_is_gone_is_given_up_at_once(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("a")
    post.webhook_client.answer = failing("a", for_good=True)
    async with post.running():
        await trio.sleep(2 * MAX_WEBHOOK_BACKOFF)
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
        await trio.sleep(WEBHOOK_TIMEOUT + 1)
        assert post.table.rows["hangs"].webhook.last_error == "no answer within 10 s"
        assert post.webhook_client.got("hangs") == []


async def test_so_many_are_posted_to_at_once_and_all_in_the_end(post: DeliverySetup) -> None:
    names = [f"w{number}" for number in range(3 * MAX_ACTIVE_WEBHOOKS)]
    for name in names:
        post.table.add(name)
    post.table.raise_alerts("a", "b")
    post.webhook_client.answer = lambda _url: 5.0
    async with post.running():
        await trio.sleep(100)
    assert post.webhook_client.most_under_way == MAX_ACTIVE_WEBHOOKS
    assert all(post.webhook_client.got(name) == ["a", "b"] for name in names)


async def test_a_bug_with_one_stops_no_other(post: DeliverySetup) -> None:
    post.table.add("bug")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.webhook_client.answer = lambda url: ZeroDivisionError() if "bug" in url else None
    async with post.running():
        await trio.sleep(10)
    assert post.webhook_client.got("a") == MESSAGES
    assert post.table.rows["bug"].webhook.last_error == "relay failed: ZeroDivisionError"


async def test_a_poisoned_alert_stops_none_behind_it(post: DeliverySetup) -> None:
    post.table.add("a")
    post.table.raise_alerts("before")
    poisoned = StoredAlert(2, "s", "ann", "x", "low", "m", 0, {"poison": object()})
    post.table.alerts.append(poisoned)
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
    assert post.table.rows["a"].leased_until < trio.current_time()
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
    supervisor = Supervisor({"webhooks": post.service()})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(PROGRESS_TIMEOUT - 1)
        post.table.hangs = False
        assert supervisor.tasks["webhooks"].restarts == 0
        await trio.sleep(2)
        assert supervisor.tasks["webhooks"].restarts == 1
        await trio.sleep(2 * PROGRESS_TIMEOUT)
        assert supervisor.tasks["webhooks"].restarts == 1
        nursery.cancel_scope.cancel()
    assert post.webhook_client.got("a") == ["a"]
