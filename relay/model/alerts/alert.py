"""Alerts before and after they are stored, and pages of stored alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from attrs import field, frozen

from relay.model.access.identity import Identity
from relay.model.alerts.alert_picture import PictureState
from relay.model.trace_context import TraceContext


@frozen
class NewAlert:
    """An alert that is not stored yet."""

    stream_id: str
    sender: str
    severity: str
    message: str
    timestamp: int
    """The sender's clock, ms since the Unix epoch."""
    metadata: Mapping[str, Any] | None = None
    alert_key: str | None = None
    frame: bool = False
    """Whether its sender wants the picture of that moment kept."""
    by: Identity | None = None
    """Store it only if this identity may send alerts for the stream; None: no check."""
    trace: TraceContext | None = field(default=None, eq=False)
    """Where its trace goes on: what the sender gave, and once it is traced, what is stored."""


@frozen
class StoredAlert:
    """An alert as committed; `alert_id` grows in the order of commits."""

    alert_id: int
    stream_id: str
    owner_id: str
    sender: str
    severity: str
    message: str
    timestamp: int
    metadata: Mapping[str, Any] | None = None
    still: PictureState | None = field(default=None, eq=False)
    """What became of its picture; None if none was to be kept."""
    clip: PictureState | None = field(default=None, eq=False)
    fresh: bool = field(default=True, eq=False)
    """False when this is an earlier alert with the same `alert_key`."""
    odd: tuple[str, ...] = field(default=(), eq=False)
    """The columns whose values no alert can have; this alert has other values there."""
    trace: TraceContext | None = field(default=None, eq=False)
    """Where its trace goes on; not for those who read alerts."""


class NoRoom(Enum):
    """Why an alert is not stored."""

    FOR_SENDER = "its sender stores as many bytes as it may"
    AT_ALL = "all senders together do"


@frozen
class History:
    """A page of stored alerts."""

    alerts: Sequence[StoredAlert]
    more: bool
    """Whether the next page has any."""


@frozen
class ExcessAlerts:
    """The alerts of a stream, up to `alert_id`, that exceed the limit."""

    stream_id: str
    alert_id: int


@frozen
class ExcessBytes:
    """The bytes of its alerts that a sender has to give up."""

    sender: str
    bytes: int
