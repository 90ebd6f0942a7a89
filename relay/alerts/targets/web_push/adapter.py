"""Sends notifications to browsers (RFC 8030), through the push services that they have named."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import structlog
import trio
from attrs import define, field

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    Undeliverable,
    Withheld,
)
from relay.alerts.targets.ntfy import STILL_LINK_TIMEOUT, StillLinks
from relay.alerts.targets.web_push.health import ServiceHealth
from relay.alerts.targets.web_push.keys import PushKeys
from relay.alerts.targets.web_push.notification import (
    TEST_PRIORITY,
    PushPriority,
    notification_of,
    priority_of,
    topic_of_event,
    trial_notification,
)
from relay.alerts.targets.webhook import WebhookSender
from relay.errors import ConfigError, StoreUnavailable
from relay.model.access.identity import User
from relay.model.access.permissions import may_watch
from relay.model.targets.alert_target import AlertTarget, TargetViewer
from relay.model.targets.outbox import event_id_of
from relay.model.targets.push_service import PushService
from relay.model.targets.push_subscription import service_of
from relay.outgoing.webhook_client import Undelivered

PUSH_TIMEOUT = 5.0
"""Seconds for a push service to answer; shorter than the outbox waits, so that a service that does
not answer does not keep the places of others."""
NO_SUBSCRIPTION = frozenset({404, 410})
"""Statuses that say that the browser has unsubscribed (RFC 8030, section 7.3)."""
TOO_LARGE = 413
ALERTS_PATH = "/alerts/"
REFUSED_KEY = frozenset({400, 401, 403})

log = structlog.get_logger()


class Viewers(Protocol):
    """The users; `StoreUnavailable`."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """The streams of others that each user may watch, without banned users."""

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """Those that have no row, where users have rows that can be read."""


@define(eq=False, repr=False)
class WebPushAdapter:
    """The kind `webpush`. A `TargetAdapter`."""

    _client: WebhookSender
    _services: Sequence[PushService]
    _keys: PushKeys
    _viewers: Viewers
    _contact: str | None = None
    """Where push services reach the operator."""
    _links: StillLinks | None = None
    """Makes paths of pictures."""
    _health: ServiceHealth = field(factory=ServiceHealth)

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        if target.viewer is None:
            return GoneForGood("it has no user")
        held_up = self._held_up(target)
        if held_up is not None:  # there may be thousands, that ask the database for nothing
            return held_up
        try:
            withheld = await self._withheld(target.viewer, delivery)
        except StoreUnavailable:
            return RetryLater("the database does not answer")
        priority = priority_of(delivery)
        age = time.time() - event_id_of(delivery.event) / 1_000_000
        if withheld is None and age > priority.ttl:
            withheld = Withheld()
        if withheld is not None:
            return withheld
        picture = await self._picture(target, delivery)
        try:
            content = notification_of(delivery, picture=picture)
        except Exception:  # what other programs have stored must not stop what is behind it
            event_id = event_id_of(delivery.event)
            log.exception("event not sent", target=target.target_id, event_id=event_id)
            return Undeliverable()
        topic = topic_of_event(target.target_id, delivery) if priority.replaces else None
        return await self._send(target, content, priority, topic)

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        return await self._send(target, trial_notification(), TEST_PRIORITY, None)

    async def _withheld(self, viewer: TargetViewer, delivery: Delivery) -> DeliveryOutcome | None:
        """Why a user does not get an event, at this moment; None: the user may have it."""
        granted = await self._viewers.granted_to([viewer.user_id])
        if viewer.user_id not in granted:
            return GoneForGood("its user is banned", forget=True)
        if viewer.by_session and await self._viewers.deleted_among([viewer.user_id]):
            return GoneForGood("its user was deleted", forget=True)
        event = delivery.event
        now = datetime.now(UTC)  # it has no session that could end
        user = User(viewer.user_id, "", now, granted[viewer.user_id])
        return None if may_watch(user, event.stream_id, event.owner_id) else Withheld()

    async def _picture(self, target: AlertTarget, delivery: Delivery) -> str | None:
        """The path of the picture of that moment, or else of the newest one, if there is one."""
        if not target.options.get("picture"):
            return None
        kept = delivery.picture_links.get("stillUrl")
        if kept is not None:
            return f"{ALERTS_PATH}{kept.rpartition(ALERTS_PATH)[2]}"
        if self._links is None:
            return None
        with trio.move_on_after(STILL_LINK_TIMEOUT):
            return await self._links.link_to(target, delivery.event.stream_id)
        return None

    async def _send(
        self, target: AlertTarget, content: bytes, priority: PushPriority, topic: str | None
    ) -> DeliveryOutcome:
        if not any(service.covers(target.url) for service in self._services):
            return GoneForGood("its push service is not in push_services")
        try:
            key = await self._keys.key()
        except (StoreUnavailable, ConfigError) as why:
            return RetryLater(str(why) or "the database does not answer")
        if target.options.get("key") != key.public:  # another node may have the right one
            return RetryLater("it has subscribed for another key: is push_key as it was?", 900.0)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "aes128gcm",
            "User-Agent": "relay",
            "TTL": str(priority.ttl),
            "Urgency": priority.urgency,
            "Authorization": key.authorization(target.url, self._contact),
        }
        if topic is not None:
            headers["Topic"] = topic
        try:
            body = _encrypted(content, target)
        except ValueError as why:  # somebody has changed the row
            return GoneForGood(str(why))
        return await self._post(target, body, headers)

    async def _post(
        self, target: AlertTarget, body: bytes, headers: dict[str, str]
    ) -> DeliveryOutcome:
        held_up = self._held_up(target)
        if held_up is not None:
            return held_up
        with self._health.attempt(service_of(target)) as attempt, trio.move_on_after(PUSH_TIMEOUT):
            try:
                await self._client.post(target.url, body, headers)
            except Undelivered as why:
                attempt.answered = why.status is not None
                return _refused(why)
            attempt.answered = True
            return Delivered()
        return RetryLater(f"its push service did not answer within {PUSH_TIMEOUT:g} s")

    def _held_up(self, target: AlertTarget) -> RetryLater | None:
        """When to try again, if its push service holds up others already; not all at once."""
        wait = self._health.wait(service_of(target))
        if wait is None:
            return None
        spread = random.uniform(1, 1.5)  # noqa: S311 - no secret
        return RetryLater("its push service does not answer others either", wait * spread)


def _encrypted(content: bytes, target: AlertTarget) -> bytes:
    """`ValueError` for keys that are none."""
    # The key of VAPID has loaded what this needs.
    from relay.alerts.targets.web_push.encryption import (  # noqa: PLC0415 (loads cryptography)
        BadSubscriptionKeys,
        SubscriptionKeys,
        encrypt,
    )

    try:
        keys = SubscriptionKeys.parse(
            str(target.options.get("p256dh")), str(target.options.get("auth"))
        )
        return encrypt(content, keys)
    except BadSubscriptionKeys as why:
        raise ValueError(str(why)) from None


def _refused(why: Undelivered) -> DeliveryOutcome:
    if why.status in NO_SUBSCRIPTION:
        return GoneForGood("the browser has unsubscribed", forget=True)
    if why.status == TOO_LARGE:
        return Undeliverable()
    if why.status in REFUSED_KEY:
        return RetryLater(f"status {why.status}: the push service does not accept relay's key")
    return RetryLater(str(why), why.retry_after)
