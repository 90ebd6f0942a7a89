"""What a browser is told of an event, and what its push service is told of the message.

The message is for `page/push-worker.js`, which shows it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from attrs import frozen

from relay.alerts.targets.delivery import Delivery
from relay.alerts.targets.web_push.coding import MAX_PLAINTEXT_BYTES, base64url
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.outbox import event_id_of, kind_of
from relay.model.targets.stream_event import StreamEvent, StreamEventKind

MAX_BODY_BYTES = 2000
"""Of UTF-8; a notification shows a few lines."""
HOUR = 3600

EVENT_WORDS: dict[StreamEventKind, str] = {
    "stream.online": "is online",
    "stream.offline": "is offline",
    "stream.watched": "is being watched",
    "stream.unwatched": "is not watched any more",
}


@frozen
class PushPriority:
    """How a push service handles a message (RFC 8030)."""

    ttl: int
    """Seconds for which it keeps the message for a browser that is away. relay sends none that is
    older."""
    urgency: str
    """Whether it may wake a phone."""
    replaces: bool
    """Whether a later message of the same stream may take the place of one that the browser has not
    had yet."""


ALERT_PRIORITIES = {
    "low": PushPriority(HOUR, "low", replaces=True),
    "medium": PushPriority(6 * HOUR, "normal", replaces=True),
    # Of these, each counts: two may be about different things.
    "high": PushPriority(24 * HOUR, "high", replaces=False),
    "critical": PushPriority(72 * HOUR, "high", replaces=False),
}
PRESENCE_PRIORITY = PushPriority(HOUR, "normal", replaces=True)
AUDIENCE_PRIORITY = PushPriority(HOUR // 4, "low", replaces=True)
TEST_PRIORITY = PushPriority(60, "high", replaces=False)


def priority_of(delivery: Delivery) -> PushPriority:
    """The priority of an event."""
    event = delivery.event
    if isinstance(event, StoredAlert):
        return ALERT_PRIORITIES[event.severity]
    return PRESENCE_PRIORITY if _is_presence(event) else AUDIENCE_PRIORITY


def subject_of_event(delivery: Delivery) -> str:
    """What later events of the same subject replace: in a browser, for low and medium alerts also
    on the way there."""
    event = delivery.event
    if isinstance(event, StoredAlert):
        if ALERT_PRIORITIES[event.severity].replaces:
            return f"{event.stream_id} {event.severity}"
        return f"{event.stream_id} {event.alert_id}"  # itself alone, if it comes twice
    return f"{event.stream_id} {'presence' if _is_presence(event) else 'audience'}"


def topic_of_event(target_id: str, delivery: Delivery) -> str:
    """The `Topic` header, which tells the push service nothing about the stream."""
    subject = f"{target_id} {subject_of_event(delivery)}"
    return base64url(hashlib.sha256(subject.encode()).digest()[:24])


def notification_of(delivery: Delivery, *, picture: str | None) -> bytes:
    """The message about an event; `picture` is a path on relay. `ValueError` if there is none that
    is small enough."""
    event = delivery.event
    content: dict[str, Any] = {
        "kind": kind_of(event),
        "id": event_id_of(event),
        "streamId": event.stream_id,
        "timestamp": event.timestamp,
        "tag": subject_of_event(delivery),
    }
    if isinstance(event, StoredAlert):
        content |= {
            "severity": event.severity,
            "title": f"{event.stream_id}: {event.severity}",
            "body": _cut(event.message),
        }
    else:
        content |= {"title": f"{event.stream_id} {EVENT_WORDS[event.kind]}", "body": ""}
    if delivery.suppressed:
        content["suppressed"] = delivery.suppressed
    if picture is not None:
        content["picture"] = picture
    return _encoded(content)


def _encoded(content: dict[str, Any]) -> bytes:
    """With as much of the body as there is room for: JSON escapes some characters."""
    encoded = msgspec.json.encode(content)
    while len(encoded) > MAX_PLAINTEXT_BYTES:
        if not content["body"]:
            raise ValueError("the stream's id is too long for a notification")
        content["body"] = content["body"][: len(content["body"]) // 2]
        encoded = msgspec.json.encode(content)
    return encoded


def trial_notification() -> bytes:
    """A message that tries whether a browser gets any."""
    body = "relay can send notifications to this browser"
    return msgspec.json.encode({"kind": "test", "title": "relay", "body": body, "tag": "test"})


def _is_presence(event: StreamEvent) -> bool:
    return event.kind in {"stream.online", "stream.offline"}


def _cut(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_BODY_BYTES:
        return encoded.decode()
    return encoded[:MAX_BODY_BYTES].decode(errors="ignore") + "…"
