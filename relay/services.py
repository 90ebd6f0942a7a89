"""What the sessions of a relay share. Floor 3."""

from __future__ import annotations

from attrs import frozen

from relay.alerts.intake import AlertIntake
from relay.guard.rates import Rate
from relay.hub.hub import Hub
from relay.metrics import Metrics
from relay.postgres.alerts import AlertTable
from relay.postgres.streams import StreamOwners


@frozen
class Services:
    """What sessions work with, and how much of it one may take."""

    hub: Hub
    owners: StreamOwners
    alerts: AlertIntake
    history: AlertTable
    metrics: Metrics
    lossless_bytes: int
    """That may wait for a consumer that must not miss a frame."""
    max_subscriptions: int | None = None
    """Of one connection."""
    max_streams: int | None = None
    """Of one user, online at a time."""
    register_rate: Rate | None = None
    """Of one user."""
    alert_rate: Rate | None = None
    """Of one sender."""
