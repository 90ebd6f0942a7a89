"""A stored alert as it travels. Floor 2."""

from __future__ import annotations

from relay.model import StoredAlert
from relay.protocol.messages import AlertEvent


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
