"""Posts events to webhooks, as Standard Webhooks define it."""

from __future__ import annotations

import secrets
from typing import Protocol

import structlog
from attrs import frozen

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    Undeliverable,
)
from relay.alerts.targets.webhook_message import headers, message_of, trial_message
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.outbox import event_id_of
from relay.outgoing.webhook_client import Undelivered

WEBHOOK_KIND = "webhook"

log = structlog.get_logger()


class WebhookSender(Protocol):
    """Posts messages to webhooks."""

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        """`Undelivered` when it was not accepted."""


@frozen(eq=False, repr=False)
class WebhookAdapter:
    """The kind `webhook`. A `TargetAdapter`."""

    _client: WebhookSender

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        event_id = event_id_of(delivery.event)
        try:
            body = message_of(delivery)
        except Exception:  # what other programs have stored must not stop what is behind it
            log.exception("event not posted", target=target.target_id, event_id=event_id)
            return Undeliverable()
        message_id = f"msg_{target.target_id}_{event_id}"
        trace = {} if delivery.trace is None else delivery.trace.headers
        return await self._post(target, message_id, body, trace)

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        return await self._post(target, f"msg_{secrets.token_hex(12)}", trial_message(), {})

    async def _post(
        self, target: AlertTarget, message_id: str, body: bytes, trace: dict[str, str]
    ) -> DeliveryOutcome:
        signed = headers(target.secret, message_id, body)
        try:
            await self._client.post(target.url, body, signed | trace)
        except Undelivered as why:
            return GoneForGood(str(why)) if why.for_good else RetryLater(str(why), why.retry_after)
        return Delivered()
