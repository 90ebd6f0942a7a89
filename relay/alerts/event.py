"""Stored alerts as they travel. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.model import StoredAlert
from relay.protocol.messages import AlertEvent

PAGE_BYTES = 1 << 20
"""Of the alerts in one page, about: it is held for as long as somebody takes to read it."""


def alert_event(alert: StoredAlert) -> AlertEvent:
    """The message that delivers a stored alert."""
    return AlertEvent(
        alert_id=alert.alert_id,
        stream_id=alert.stream_id,
        severity=alert.severity,
        message=alert.message,
        metadata=dict(alert.metadata) if alert.metadata is not None else None,
        timestamp=alert.timestamp,
    )


def page_of(stored: Sequence[StoredAlert], size: Callable[[AlertEvent], int]) -> list[AlertEvent]:
    """The first of these, as many as one page holds, but one at least; `size` is in bytes."""
    page: list[AlertEvent] = []
    total = 0
    for each in stored:
        event = alert_event(each)
        total += size(event)
        if page and total > PAGE_BYTES:
            break
        page.append(event)
    return page
