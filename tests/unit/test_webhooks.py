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
from relay.alerts.webhooks import ANSWER, AT_ONCE, LEASE, LONGEST_PAUSE, POLL, Webhooks
from relay.courier import Undelivered
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model import StoredAlert
from relay.postgres.webhooks import Webhook
from relay.supervisor import PATIENCE, Supervisor

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
class Table:
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

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]:
        await self._work()
        return self.alerts[position : position + PAGE]

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
        patience: timedelta,
        for_good: bool,
    ) -> bool:
        await self._work()
        row, now = self.rows[webhook.webhook_id], trio.current_time()
        row.webhook = evolve(row.webhook, failures=row.webhook.failures + 1, last_error=why)
        if row.failing_since is None:
            row.failing_since = now
        row.due, row.leased_until = now + pause.total_seconds(), -math.inf
        row.given_up = for_good or row.failing_since < now - patience.total_seconds()
        return row.given_up

    async def release(self, webhook: Webhook, lease: UUID) -> None:
        await self._work()
        self.rows[webhook.webhook_id].leased_until = -math.inf

    async def _work(self) -> None:
        self.before_query()
        await trio.sleep(0.01)


@define(eq=False)
class Courier:
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
class Post:
    table: Table = field(factory=Table)
    courier: Courier = field(factory=Courier)
    metrics: Metrics = field(factory=Metrics)

    def service(self) -> Webhooks:
        table: Any = self.table
        return Webhooks(table, self.courier, self.metrics)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Webhooks]:
        service = self.service()
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            yield service
            nursery.cancel_scope.cancel()


@pytest.fixture
def post() -> Post:
    return Post()


def failing(*names: str, for_good: bool = False) -> Callable[[str], Undelivered | None]:
    def answer(url: str) -> Undelivered | None:
        if url.removeprefix("https://") in names:
            return Undelivered("status 500", for_good=for_good)
        return None

    return answer


MESSAGES = [f"alert {number}" for number in range(3 * PAGE + 1)]


async def test_all_alerts_are_posted_in_order_to_each(post: Post) -> None:
    for name in ("a", "b"):
        post.table.add(name)
    async with post.running() as service:
        post.table.raise_alerts(*MESSAGES[:4])
        service.wake()
        await trio.sleep(5)
        post.table.raise_alerts(*MESSAGES[4:])
        service.wake()
        await trio.sleep(5)
    assert post.courier.got("a") == post.courier.got("b") == MESSAGES
    assert post.metrics.webhook_alerts == {"delivered": 2 * len(MESSAGES)}
    assert len(set(post.courier.ids)) == len(post.courier.ids)


async def test_one_that_is_told_of_is_posted_at_once_and_others_soon(post: Post) -> None:
    post.table.add("a")
    async with post.running() as service:
        await trio.sleep(10.5)
        post.table.raise_alerts("told")
        service.wake()
        await trio.sleep(0.1)
        assert post.courier.got("a") == ["told"]
        post.table.raise_alerts("not told")
        await trio.sleep(POLL + 0.1)
        assert post.courier.got("a") == ["told", "not told"]


async def test_while_nothing_happens_the_table_is_asked_now_and_then(post: Post) -> None:
    async with post.running():
        await trio.sleep(1000)
    assert 1000 / POLL - 10 < post.table.claims <= 1000 / POLL + 1


async def test_one_that_fails_is_tried_again_with_the_same_id_and_nothing_overtakes(
    post: Post,
) -> None:
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.courier.answer = failing("a")
    async with post.running():
        await trio.sleep(60)
        assert post.courier.posted == []
        assert len(post.courier.ids) > 2
        assert set(post.courier.ids) == {"msg_a_1"}
        post.courier.answer = failing()
        await trio.sleep(2 * LONGEST_PAUSE)
        assert post.courier.got("a") == MESSAGES


async def test_it_is_tried_later_and_later_and_given_up_when_patience_ends(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PATIENCE", timedelta(hours=5))
    post.table.add("a")
    post.table.raise_alerts("a")
    post.courier.answer = failing("a")
    async with post.running():
        await trio.sleep(3 * FIVE_HOURS)
    times = post.courier.times
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert pauses[0] <= 3 + POLL + 0.1
    assert all(pause <= 1.5 * LONGEST_PAUSE + POLL + 0.1 for pause in pauses)
    assert min(pauses[10:]) >= 0.5 * LONGEST_PAUSE
    assert len({round(pause) for pause in pauses[10:]}) > 10  # not all in step
    assert FIVE_HOURS < times[-1] - times[0] < FIVE_HOURS + 2 * LONGEST_PAUSE
    assert post.table.rows["a"].given_up
    assert post.metrics.webhook_alerts == {"failed": len(times), "given_up": 1}


async def test_one_that_says_it_is_gone_is_given_up_at_once(post: Post) -> None:
    post.table.add("a")
    post.table.raise_alerts("a")
    post.courier.answer = failing("a", for_good=True)
    async with post.running():
        await trio.sleep(2 * LONGEST_PAUSE)
    assert len(post.courier.times) == 1
    assert post.table.rows["a"].given_up


async def test_one_that_hangs_is_left_in_time_and_holds_up_no_other(post: Post) -> None:
    post.table.add("hangs")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.courier.answer = lambda url: math.inf if "hangs" in url else None
    async with post.running():
        await trio.sleep(1)
        assert post.courier.got("a") == MESSAGES
        await trio.sleep(ANSWER + 1)
        assert post.table.rows["hangs"].webhook.last_error == "no answer within 10 s"
        assert post.courier.got("hangs") == []


async def test_so_many_are_posted_to_at_once_and_all_in_the_end(post: Post) -> None:
    names = [f"w{number}" for number in range(3 * AT_ONCE)]
    for name in names:
        post.table.add(name)
    post.table.raise_alerts("a", "b")
    post.courier.answer = lambda _url: 5.0
    async with post.running():
        await trio.sleep(100)
    assert post.courier.most_under_way == AT_ONCE
    assert all(post.courier.got(name) == ["a", "b"] for name in names)


async def test_a_bug_with_one_stops_no_other(post: Post) -> None:
    post.table.add("bug")
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.courier.answer = lambda url: ZeroDivisionError() if "bug" in url else None
    async with post.running():
        await trio.sleep(10)
    assert post.courier.got("a") == MESSAGES
    assert post.table.rows["bug"].webhook.last_error == "relay failed: ZeroDivisionError"


async def test_a_poisoned_alert_stops_none_behind_it(post: Post) -> None:
    post.table.add("a")
    post.table.raise_alerts("before")
    poisoned = StoredAlert(2, "s", "ann", "x", "low", "m", 0, {"poison": object()})
    post.table.alerts.append(poisoned)
    post.table.raise_alerts("behind")
    async with post.running():
        await trio.sleep(10)
    assert post.courier.got("a") == ["before", "behind"]
    assert post.metrics.webhook_alerts["delivered"] == 2


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7])
async def test_the_store_away_again_and_again_loses_none_and_keeps_their_order(
    post: Post, period: int
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
        await trio.sleep(100 * LEASE.total_seconds())
    got = post.courier.got("a")
    assert [each for number, each in enumerate(got) if each not in got[:number]] == MESSAGES
    assert got == sorted(got, key=MESSAGES.index)


@pytest.mark.parametrize("moment", [0.005, 0.015, 0.1, 0.5, 1.2])
async def test_one_that_is_stopped_leaves_it_to_the_next_at_once(post: Post, moment: float) -> None:
    post.table.add("a")
    post.table.raise_alerts(*MESSAGES)
    post.courier.answer = lambda _url: 0.2
    async with post.running():
        await trio.sleep(moment)
    assert post.table.rows["a"].leased_until < trio.current_time()
    async with post.running():
        await trio.sleep(5)
    got = post.courier.got("a")
    assert sorted(set(got), key=MESSAGES.index) == MESSAGES


async def test_two_relays_do_not_post_the_same(post: Post) -> None:
    for number in range(5):
        post.table.add(f"w{number}")
    post.courier.answer = lambda _url: 0.2
    async with post.running() as one, post.running() as other:
        for number in range(0, len(MESSAGES), 2):
            post.table.raise_alerts(*MESSAGES[number : number + 2])
            one.wake()
            other.wake()
            await trio.sleep(0.3)
        await trio.sleep(30)
    assert all(post.courier.got(f"w{number}") == MESSAGES for number in range(5))
    assert len(post.courier.ids) == 5 * len(MESSAGES)


async def test_a_service_that_hangs_is_ended_and_started_again(post: Post) -> None:
    post.table.add("a")
    post.table.raise_alerts("a")
    post.table.hangs = True
    supervisor = Supervisor({"webhooks": post.service()})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(PATIENCE - 1)
        post.table.hangs = False
        assert supervisor.services["webhooks"].restarts == 0
        await trio.sleep(2)
        assert supervisor.services["webhooks"].restarts == 1
        await trio.sleep(2 * PATIENCE)
        assert supervisor.services["webhooks"].restarts == 1
        nursery.cancel_scope.cancel()
    assert post.courier.got("a") == ["a"]
