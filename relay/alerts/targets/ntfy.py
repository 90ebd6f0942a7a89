"""Publishes events to topics of ntfy (https://ntfy.sh), or of an ntfy server of one's own.

A message is published as JSON to the server's root, so nothing that a sender of alerts writes can
become a header: https://docs.ntfy.sh/publish/#publish-as-json
"""

from __future__ import annotations

import base64
import re
from typing import Any, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import structlog
import trio
from attrs import frozen

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    Undeliverable,
)
from relay.alerts.targets.webhook import WebhookSender
from relay.errors import ConfigError
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.outbox import event_id_of
from relay.model.targets.stream_event import StreamEvent, StreamEventKind
from relay.outgoing.webhook_client import Undelivered

NTFY_KIND = "ntfy"
TOPIC_PATTERN = r"[-_A-Za-z0-9]{1,64}"
MAX_NTFY_MESSAGE_BYTES = 3500
"""Of UTF-8. A server takes 4,096, of which a longer message becomes a file."""
MAX_NTFY_BODY_BYTES = 8000
"""Of JSON, in which some characters take six bytes. A server takes twice as much as a message may
have, and would refuse this one again and again, with all that is behind it."""
TOO_LARGE_FOR_NTFY = 413
MAX_CREDENTIALS_LENGTH = 512
STILL_LINK_TIMEOUT = 2.0
"""Seconds that a message waits for the link to its picture."""
REFUSALS = {
    401: "status 401: it wants credentials",
    403: "status 403: relay may not publish to this topic",
    429: "status 429: too many messages",
}

NTFY_PRIORITIES = {"low": 2, "medium": 3, "high": 4, "critical": 5}
"""Of the severities of alerts; from 4 on a phone makes more noise."""
NTFY_TAGS = {
    "low": "information_source",
    "medium": "bell",
    "high": "warning",
    "critical": "rotating_light",
}
"""Which ntfy shows as emoji."""
EVENT_LOOKS: dict[StreamEventKind, tuple[str, str]] = {
    "stream.online": ("is online", "green_circle"),
    "stream.offline": ("is offline", "red_circle"),
    "stream.watched": ("is being watched", "eyes"),
    "stream.unwatched": ("is not watched any more", "see_no_evil"),
}
"""What is said of a stream, and the tag."""

log = structlog.get_logger()


class StillLinks(Protocol):
    """Links to what a stream shows."""

    async def link_to(self, target: AlertTarget, stream_id: str) -> str | None:
        """A URL of the newest picture, which expires; None if there is none."""


@frozen(eq=False, repr=False)
class NtfyAdapter:
    """The kind `ntfy`. A `TargetAdapter`."""

    _client: WebhookSender
    _public_url: str | None = None
    """Where people reach relay, for what a tap on a message opens."""
    _links: StillLinks | None = None

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        picture = None
        if target.options.get("picture") and self._links is not None:
            with trio.move_on_after(STILL_LINK_TIMEOUT):
                picture = await self._links.link_to(target, delivery.event.stream_id)
        try:
            body = ntfy_message(target, delivery, public_url=self._public_url, picture=picture)
        except Exception:  # what other programs have stored must not stop what is behind it
            event_id = event_id_of(delivery.event)
            log.exception("event not published", target=target.target_id, event_id=event_id)
            return Undeliverable()
        return await self._publish(target, body)

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        content = {
            "topic": topic_of(target.url),
            "title": "relay",
            "message": "relay can reach this topic",
            "tags": ["wave"],
        }
        return await self._publish(target, msgspec.json.encode(content))

    async def _publish(self, target: AlertTarget, body: bytes) -> DeliveryOutcome:
        headers = {"Content-Type": "application/json", "User-Agent": "relay"}
        if target.secret:
            headers["Authorization"] = authorization(target.secret)
        try:
            await self._client.post(server_of(target.url), body, headers)
        except Undelivered as why:
            if why.for_good:
                return GoneForGood(str(why))
            if why.status == TOO_LARGE_FOR_NTFY:
                return Undeliverable()
            return RetryLater(REFUSALS.get(why.status or 0, str(why)), why.retry_after)
        return Delivered()


def check_ntfy_url(url: str) -> None:
    """`ConfigError` unless a URL ends in a topic. What any URL of a webhook has to be is checked
    elsewhere."""
    parts = urlsplit(url)
    if parts.query or not re.fullmatch(rf"(/.*)?/{TOPIC_PATTERN}", parts.path):
        raise ConfigError(
            "expected the URL of a topic, such as https://ntfy.example.org/front-door, whose name"
            " has up to 64 letters, digits, - and _"
        )


def check_credentials(text: str, where: str) -> None:
    """`ConfigError`, which shows none of it, unless it is an access token or USER:PASSWORD."""
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_CREDENTIALS_LENGTH}}}", text):
        raise ConfigError(f"{where} does not contain one access token (tk_...) or USER:PASSWORD")


def topic_of(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def server_of(url: str) -> str:
    """Where messages to all topics are published."""
    parts = urlsplit(url)
    path = parts.path.rpartition("/")[0] or "/"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def authorization(credentials: str) -> str:
    """The header for an access token, or for USER:PASSWORD."""
    if ":" not in credentials:
        return f"Bearer {credentials}"
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def ntfy_message(
    target: AlertTarget, delivery: Delivery, *, public_url: str | None, picture: str | None
) -> bytes:
    """The body that is published for an event."""
    event = delivery.event
    content = _of_alert(event) if isinstance(event, StoredAlert) else _of_event(event)
    content["topic"] = topic_of(target.url)
    content["tags"].append(event.stream_id)
    if delivery.suppressed:
        content["message"] += f"\n({_counted(delivery.suppressed)} suppressed since the last one)"
    if public_url is not None:
        content["click"] = f"{public_url}/#watch/{quote(event.stream_id, safe='')}"
    if picture is not None:
        content["attach"] = picture
        content["filename"] = f"{event.stream_id}.jpg"
    encoded = msgspec.json.encode(content)
    while len(encoded) > MAX_NTFY_BODY_BYTES and len(content["message"]) > 2:
        content["message"] = content["message"][: len(content["message"]) // 2] + "…"
        encoded = msgspec.json.encode(content)
    return encoded


def _of_alert(alert: StoredAlert) -> dict[str, Any]:
    return {
        "title": f"{alert.stream_id}: {alert.severity}",
        "message": _cut(alert.message) or alert.severity,
        "priority": NTFY_PRIORITIES[alert.severity],
        "tags": [NTFY_TAGS[alert.severity]],
    }


def _of_event(event: StreamEvent) -> dict[str, Any]:
    said, tag = EVENT_LOOKS[event.kind]
    return {
        "title": f"{event.stream_id} {said}",
        "message": f"The stream {event.stream_id} {said}",
        "priority": 3 if event.kind in {"stream.online", "stream.offline"} else 2,
        "tags": [tag],
    }


def _counted(number: int) -> str:
    return "1 more was" if number == 1 else f"{number} more were"


def _cut(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_NTFY_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:MAX_NTFY_MESSAGE_BYTES].decode(errors="ignore") + "…"
