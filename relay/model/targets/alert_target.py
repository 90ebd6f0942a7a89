"""Where alerts and stream events are delivered, as it is stored, and its rules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen

from relay.model.access.identity import ANY_STREAM
from relay.model.targets.stream_event import ALERT_EVENT

SEVERITY_RANKS = {"low": 1, "medium": 2, "high": 3, "critical": 4}
"""The severities of alerts, each with its rank."""
WEBPUSH_KIND = "webpush"
TARGET_KINDS = ("webhook", "ntfy", "mqtt", WEBPUSH_KIND)
"""The kinds of targets, each with an adapter in `alerts/targets/`."""
MAX_COOLDOWN = 7 * 24 * 3600
"""Seconds."""


@frozen
class TargetRules:
    """Which events a target gets."""

    events: tuple[str, ...] = (ALERT_EVENT,)
    """The kinds of events: `alert`, or those of `StreamEventKind`."""
    min_severity: str = "low"
    """Alerts of lower severities are left out."""
    cooldown: int = 0
    """Seconds for which a stream's further events of the same kind are suppressed."""
    stream_prefix: str | None = None
    """Only streams whose ids begin with this; None: all."""


@frozen
class TargetViewer:
    """The user to whom a target belongs. It gets the events of all streams that the user may see at
    that moment, of those that were asked for."""

    user_id: str
    by_session: bool
    """Whether the user is a row of the user table."""
    streams: tuple[str, ...] = (ANY_STREAM,)
    """Ids, and prefixes of ids with a `*` behind."""


@frozen
class AlertTarget:
    """Where events are delivered, and how far the deliveries have got."""

    target_id: str
    kind: str
    """Names the adapter that delivers to it, such as `webhook`."""
    url: str = field(repr=False)
    """It may contain a secret of the receiver."""
    secret: str = field(repr=False)
    """What the adapter signs or logs in with; empty if it needs nothing."""
    position: int
    """The id up to which all events were delivered, or left out by its rules."""
    owner_id: str | None
    """Deliver the events of all streams of this user; None: of `stream_id` only, or of all whose
    ids begin with the prefix of its rules."""
    stream_id: str | None
    created_at: datetime
    delivered: int
    failures: int
    """Since the last success."""
    try_again_at: datetime | None
    last_error: str | None
    given_up_at: datetime | None
    suppressed: int = 0
    """Events that its cooldown left out."""
    rules: TargetRules = field(factory=TargetRules)
    options: Mapping[str, Any] = field(factory=dict, repr=False)
    """What its kind knows beside the URL and the secret."""
    viewer: TargetViewer | None = None
    """With it, there is neither an owner nor a stream nor a prefix; None: operators have set it
    up."""


@frozen
class NewTarget:
    """A target that is not stored yet."""

    url: str = field(repr=False)
    secret: str = field(repr=False)
    kind: str = "webhook"
    owner_id: str | None = None
    stream_id: str | None = None
    rules: TargetRules = field(factory=TargetRules)
    options: Mapping[str, Any] = field(factory=dict, repr=False)


@frozen
class Cooldown:
    """What a target has had of the events of one kind of one stream."""

    stream_id: str
    kind: str
    delivered_id: int
    """The id of the last event that was delivered: microseconds since the Unix epoch."""
    suppressed: int
    """How many were suppressed since."""
