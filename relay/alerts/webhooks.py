"""Posts alerts to webhooks, each in order, at least once. Floor 2.

A supervised service. It takes webhooks that have something before them, each in a task of its own,
so that one that hangs holds up no other. One that fails is tried again later and later, and given
up after a day; `relay webhook test` takes it up again, from where it was.
"""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, Protocol
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, field

from relay.alerts.webhook_message import alert_message, headers
from relay.courier import Undelivered
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model import StoredAlert
from relay.postgres.webhooks import Webhook
from relay.turns import Turn

AT_ONCE = 64
"""Webhooks that one relay is at."""
ANSWER = 10.0
"""Seconds in which a webhook has to answer."""
LEASE = timedelta(seconds=30)
"""How long a webhook is ours without a sign; longer than one alert takes."""
POLL = 2.0
"""Seconds between looks without a sign that there is something."""
CALM = 0.1
"""And at least, however many signs there are."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 900.0
"""Seconds from a failure to the next attempt: doubled each time, give or take a half."""
PATIENCE = timedelta(days=1)
"""From the first failure until a webhook is given up."""
LEAVE = 2.0
"""Seconds to let others have a webhook when relay stops."""

log = structlog.get_logger()


class Table(Protocol):
    """Of webhooks, with `StoreUnavailable` while there is none."""

    async def claim(self, lease: UUID, *, lasts: timedelta, most: int) -> list[Webhook]: ...

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]: ...

    async def delivered(
        self, webhook: Webhook, lease: UUID, alert_id: int, *, lasts: timedelta
    ) -> bool: ...

    async def failed(
        self,
        webhook: Webhook,
        lease: UUID,
        why: str,
        *,
        pause: timedelta,
        patience: timedelta,
        for_good: bool,
    ) -> bool: ...

    async def release(self, webhook: Webhook, lease: UUID) -> None: ...


class Post(Protocol):
    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        """`Undelivered` when it was not taken."""


@define(eq=False)
class Webhooks:
    """The service."""

    _table: Table
    _courier: Post
    _metrics: Metrics
    turn: Turn = field(init=False, factory=Turn)
    """Taking webhooks; each post has a deadline of its own."""
    _lease: UUID = field(factory=uuid4)
    _busy: int = 0
    _wake: trio.Event = field(factory=trio.Event)

    def wake(self) -> None:
        """Say that there may be something to post."""
        self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._busy, self._lease = 0, uuid4()
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                for webhook in await self._claim():
                    self._busy += 1
                    nursery.start_soon(self._serve, webhook)
                await trio.sleep(CALM)
                with trio.move_on_after(POLL - CALM):
                    await self._wake.wait()

    async def _claim(self) -> list[Webhook]:
        if self._busy >= AT_ONCE:
            return []
        try:
            with self.turn:
                return await self._table.claim(self._lease, lasts=LEASE, most=AT_ONCE - self._busy)
        except StoreUnavailable:
            return []

    async def _serve(self, webhook: Webhook) -> None:
        """Post a page of what is behind one, and let it go; others may have waited for us."""
        try:
            if await self._post_some(webhook):
                await self._table.release(webhook, self._lease)
        except StoreUnavailable:
            pass  # the lease runs out
        except trio.Cancelled:
            with trio.move_on_after(LEAVE, shield=True), suppress(StoreUnavailable):
                await self._table.release(webhook, self._lease)
            raise
        finally:
            self._busy -= 1
            self._wake.set()

    async def _post_some(self, webhook: Webhook) -> bool:
        """Whether the webhook is still ours."""
        for alert in await self._table.behind(webhook, webhook.position):
            try:
                await self._post(webhook, alert)
            except Undelivered as why:
                await self._put_off(webhook, why)
                return False
            if not await self._table.delivered(webhook, self._lease, alert.alert_id, lasts=LEASE):
                return False
        return True

    async def _post(self, webhook: Webhook, alert: StoredAlert) -> None:
        message_id = f"msg_{webhook.webhook_id}_{alert.alert_id}"
        try:
            body = alert_message(alert)
        except Exception:  # a poisoned alert must not stop those behind it
            log.exception("alert not posted", webhook=webhook.webhook_id, alert_id=alert.alert_id)
            return
        try:
            with trio.fail_after(ANSWER):
                await self._courier.post(
                    webhook.url, body, headers(webhook.secret, message_id, body)
                )
            self._metrics.webhook_alerts["delivered"] += 1
        except trio.TooSlowError:
            raise Undelivered(f"no answer within {ANSWER:g} s") from None
        except Undelivered:
            raise
        except Exception as bug:  # it must not stop other webhooks
            log.exception("webhook not called", webhook=webhook.webhook_id, alert_id=alert.alert_id)
            raise Undelivered(f"relay failed: {type(bug).__name__}") from None

    async def _put_off(self, webhook: Webhook, why: Undelivered) -> None:
        self._metrics.webhook_alerts["failed"] += 1
        pause = min(FIRST_PAUSE * 2.0 ** min(webhook.failures, 30), LONGEST_PAUSE)
        given_up = await self._table.failed(
            webhook,
            self._lease,
            str(why),
            pause=timedelta(seconds=pause * random.uniform(0.5, 1.5)),  # noqa: S311 - no secret
            patience=PATIENCE,
            for_good=why.for_good,
        )
        if given_up:
            self._metrics.webhook_alerts["given_up"] += 1
            log.error("webhook given up", webhook=webhook.webhook_id, why=str(why))
        elif webhook.failures == 0:
            log.warning("webhook fails", webhook=webhook.webhook_id, why=str(why))
