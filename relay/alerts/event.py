"""Stored alerts as messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.model.alerts.alert import StoredAlert
from relay.protocol.messages import AlertEvent

MAX_PAGE_BYTES = 1 << 20
"""Bytes of the alerts in a page, about; a page is held for as long as its reader takes."""


def alert_event(alert: StoredAlert) -> AlertEvent:
    """The message that delivers a stored alert."""
    return AlertEvent(
        alert_id=alert.alert_id,
        stream_id=alert.stream_id,
        severity=alert.severity,
        message=alert.message,
        metadata=alert.metadata,
        timestamp=alert.timestamp,
        still=alert.still,
        clip=alert.clip,
    )


def page_of(stored: Sequence[StoredAlert], size: Callable[[AlertEvent], int]) -> list[AlertEvent]:
    """The first alerts, as many as a page may hold and at least one; `size` gives bytes."""
    page: list[AlertEvent] = []
    total = 0
    for each in stored:
        event = alert_event(each)
        total += size(event)
        if page and total > MAX_PAGE_BYTES:
            break
        page.append(event)
    return page
