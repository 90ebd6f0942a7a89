"""Posts alerts to webhooks, each in order, at least once.

A supervised task. It leases webhooks that have alerts waiting, and serves each in a task of its
own, so that a webhook that hangs holds up no other. After a failure it tries again later and later,
and gives up after a day; `relay webhook test` resumes the webhook from its position.
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
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.backoff import pause_after
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alert import StoredAlert
from relay.model.webhook import Webhook
from relay.outgoing.webhook_client import Undelivered

MAX_ACTIVE_WEBHOOKS = 64
"""Webhooks that one relay serves at a time."""
WEBHOOK_TIMEOUT = 10.0
"""Seconds for the answer of a webhook."""
LEASE_TIME = timedelta(seconds=30)
"""How long a lease lasts unless it is renewed; longer than the delivery of one alert takes."""
WEBHOOK_POLL_INTERVAL = 2.0
"""Seconds between two claims when no new alert is signalled, while anybody is connected."""
MAX_WEBHOOK_READS = 3
"""Attempts to read an alert for a webhook, while the store answers; then it is skipped."""
MIN_CLAIM_INTERVAL = 0.1
"""Seconds between two claims at least, however many alerts are signalled."""
FIRST_WEBHOOK_BACKOFF, MAX_WEBHOOK_BACKOFF = 2.0, 900.0
"""Seconds from a failure to the next attempt: doubled each time, give or take a half."""
GIVE_UP_AFTER = timedelta(days=1)
"""The time from the first failure until a webhook is given up."""
RELEASE_TIMEOUT = 2.0
"""Seconds to release the lease of a webhook when relay stops."""

log = structlog.get_logger()


class WebhookQueue(Protocol):
    """The webhooks and their alerts; `StoreUnavailable` while the table is away."""

    async def claim(self, lease: UUID, *, lasts: timedelta, most: int) -> list[Webhook]:
        """Lease webhooks that have alerts waiting."""

    async def next_due(self) -> float | None:
        """Seconds until a webhook is to be tried again, or its lease runs out; None when there is
        none."""

    async def behind(self, webhook: Webhook, position: int) -> list[StoredAlert]:
        """The next alerts after a position, in order."""

    async def next_id(self, webhook: Webhook, position: int) -> int | None:
        """The id of the next alert after a position; None when there is none."""

    async def delivered(
        self, webhook: Webhook, lease: UUID, alert_id: int, *, lasts: timedelta
    ) -> bool:
        """Advance the position and renew the lease; False when the lease is lost."""

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
        """Put the next attempt off; whether the webhook is given up."""

    async def release(self, webhook: Webhook, lease: UUID) -> None:
        """End a lease."""


class WebhookSender(Protocol):
    """Posts messages to webhooks."""

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        """`Undelivered` when it was not accepted."""


@define(eq=False)
class WebhookDelivery:
    """The supervised task."""

    _queue: WebhookQueue
    _webhook_client: WebhookSender
    _metrics: Metrics
    _activity: Activity = field(factory=always_active)
    progress: Progress = field(init=False, factory=Progress)
    """Leasing webhooks; each post has a deadline of its own."""
    _lease: UUID = field(factory=uuid4)
    _active: int = 0
    _wake: Wakeup = field(factory=Wakeup)
    _failed_reads: dict[str, tuple[int, int]] = field(factory=dict)
    """For each webhook whose next alert could not be read: its position, and how often."""

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._wake.set)

    def wake(self) -> None:
        """Tell that there may be new alerts."""
        self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._active, self._lease = 0, uuid4()
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                for webhook in await self._claim():
                    self._active += 1
                    nursery.start_soon(self._serve, webhook)
                await trio.sleep(MIN_CLAIM_INTERVAL)
                with trio.move_on_after(await self._pause() - MIN_CLAIM_INTERVAL):
                    await self._wake.wait()

    async def _pause(self) -> float:
        """Seconds until the next claim, if no alert is signalled."""
        if self._activity.active:
            return WEBHOOK_POLL_INTERVAL
        try:
            with self.progress:
                due = await self._queue.next_due()
        except StoreUnavailable:
            return WEBHOOK_POLL_INTERVAL
        if due is None:
            return REST_INTERVAL
        return min(max(due + 2 * MIN_CLAIM_INTERVAL, WEBHOOK_POLL_INTERVAL), REST_INTERVAL)

    async def _claim(self) -> list[Webhook]:
        if self._active >= MAX_ACTIVE_WEBHOOKS:
            return []
        try:
            with self.progress:
                return await self._queue.claim(
                    self._lease, lasts=LEASE_TIME, most=MAX_ACTIVE_WEBHOOKS - self._active
                )
        except StoreUnavailable:
            return []

    async def _serve(self, webhook: Webhook) -> None:
        """Post a page of alerts, and release the webhook, since others may be waiting."""
        try:
            if await self._post_page(webhook):
                await self._queue.release(webhook, self._lease)
        except StoreUnavailable:
            pass  # the lease runs out
        except trio.Cancelled:
            with trio.move_on_after(RELEASE_TIMEOUT, shield=True), suppress(StoreUnavailable):
                await self._queue.release(webhook, self._lease)
            raise
        finally:
            self._active -= 1
            self._wake.set()

    async def _post_page(self, webhook: Webhook) -> bool:
        """Returns whether the webhook is still leased to us."""
        unavailable: StoreUnavailable | None = None
        try:
            alerts = await self._queue.behind(webhook, webhook.position)
        except StoreRejects as why:
            return await self._skip(webhook, why)
        except StoreUnavailable as why:
            unavailable = why
        if unavailable:
            if await self._is_unreadable(webhook):
                return await self._skip(webhook, unavailable)
            raise unavailable
        self._failed_reads.pop(webhook.webhook_id, None)
        for alert in alerts:
            try:
                await self._post(webhook, alert)
            except Undelivered as why:
                await self._record_failure(webhook, why)
                return False
            if not await self._queue.delivered(
                webhook, self._lease, alert.alert_id, lasts=LEASE_TIME
            ):
                return False
        return True

    async def _is_unreadable(self, webhook: Webhook) -> bool:
        """Whether the next alert could not be read again and again, though the store answers."""
        await self._queue.next_id(webhook, webhook.position)
        position, failed = self._failed_reads.get(webhook.webhook_id, (webhook.position, 0))
        failed = failed + 1 if position == webhook.position else 1
        self._failed_reads[webhook.webhook_id] = webhook.position, failed
        return failed >= MAX_WEBHOOK_READS

    async def _skip(self, webhook: Webhook, why: StoreRejects | StoreUnavailable) -> bool:
        """Advance past an alert that can be read by no means."""
        self._failed_reads.pop(webhook.webhook_id, None)
        alert_id = await self._queue.next_id(webhook, webhook.position)
        if alert_id is None:
            return True
        self._metrics.alerts_unreadable += 1
        log.error(
            "alert cannot be read: no webhook gets it",
            webhook=webhook.webhook_id,
            alert_id=alert_id,
            why=str(why),
        )
        return await self._queue.delivered(webhook, self._lease, alert_id, lasts=LEASE_TIME)

    async def _post(self, webhook: Webhook, alert: StoredAlert) -> None:
        message_id = f"msg_{webhook.webhook_id}_{alert.alert_id}"
        try:
            body = alert_message(alert)
        except Exception:  # a poisoned alert must not stop those behind it
            self._metrics.alerts_unreadable += 1
            log.exception("alert not posted", webhook=webhook.webhook_id, alert_id=alert.alert_id)
            return
        try:
            with trio.fail_after(WEBHOOK_TIMEOUT):
                await self._webhook_client.post(
                    webhook.url, body, headers(webhook.secret, message_id, body)
                )
            self._metrics.webhook_alerts["delivered"] += 1
        except trio.TooSlowError:
            raise Undelivered(f"no answer within {WEBHOOK_TIMEOUT:g} s") from None
        except Undelivered:
            raise
        except Exception as bug:  # it must not stop other webhooks
            log.exception("webhook not called", webhook=webhook.webhook_id, alert_id=alert.alert_id)
            raise Undelivered(f"relay failed: {type(bug).__name__}") from None

    async def _record_failure(self, webhook: Webhook, why: Undelivered) -> None:
        self._metrics.webhook_alerts["failed"] += 1
        pause = pause_after(
            webhook.failures, first=FIRST_WEBHOOK_BACKOFF, longest=MAX_WEBHOOK_BACKOFF
        )
        given_up = await self._queue.failed(
            webhook,
            self._lease,
            str(why),
            pause=timedelta(seconds=pause * random.uniform(0.5, 1.5)),  # noqa: S311 - no secret
            give_up_after=GIVE_UP_AFTER,
            for_good=why.for_good,
        )
        if given_up:
            self._metrics.webhook_alerts["given_up"] += 1
            log.error("webhook given up", webhook=webhook.webhook_id, why=str(why))
        elif webhook.failures == 0:
            log.warning("webhook fails", webhook=webhook.webhook_id, why=str(why))
