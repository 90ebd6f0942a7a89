"""The messages that are posted to webhooks, and their signatures, as Standard Webhooks define them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from relay.alerts.event import alert_event
from relay.alerts.targets.delivery import Delivery
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.stream_event import StreamEvent
from relay.protocol.codec import JSON_CODEC

WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - how each secret begins
MAX_DATE_SECONDS = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""The last second that a date can have; a sender's clock may be later."""


def new_secret() -> str:
    return WEBHOOK_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message; `timestamp` is in seconds since the Unix epoch."""
    key = base64.b64decode(secret.removeprefix(WEBHOOK_SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"


def message_of(delivery: Delivery) -> bytes:
    """The body that is posted for an event: the same bytes at each attempt."""
    event = delivery.event
    data = _alert_data(event) if isinstance(event, StoredAlert) else _event_data(event)
    data |= delivery.picture_links
    if delivery.suppressed:
        data["suppressed"] = delivery.suppressed
    kind = "alert" if isinstance(event, StoredAlert) else event.kind
    seconds = min(event.timestamp / 1000, MAX_DATE_SECONDS)
    return _message(kind, datetime.fromtimestamp(seconds, UTC), data)


def _alert_data(alert: StoredAlert) -> dict[str, Any]:
    # What becomes of its pictures changes from one attempt to the next.
    event = msgspec.structs.replace(alert_event(alert), still=None, clip=None)
    encoded = JSON_CODEC.encode(event)
    data: dict[str, Any] = msgspec.json.decode(encoded, type=dict[str, msgspec.Raw])
    del data["type"]
    return data


def _event_data(event: StreamEvent) -> dict[str, Any]:
    return {
        "eventId": event.event_id,
        "streamId": event.stream_id,
        "epoch": event.epoch,
        "timestamp": event.timestamp,
    }


def trial_message() -> bytes:
    """The body of a message that tries whether a webhook works."""
    return _message("test", datetime.now(UTC), {"message": "relay can reach this webhook"})


def headers(secret: str, message_id: str, body: bytes) -> dict[str, str]:
    """The headers of an attempt that is made now."""
    timestamp = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": "relay",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, message_id, timestamp, body),
    }


def _message(kind: str, moment: datetime, data: Any) -> bytes:
    timestamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": kind, "timestamp": timestamp, "data": data})
