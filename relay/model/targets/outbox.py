"""What the outbox reads and writes for a target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from attrs import frozen

from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import Cooldown
from relay.model.targets.stream_event import ALERT_EVENT, StreamEvent

OutboxEvent = StoredAlert | StreamEvent


@frozen
class EventPage:
    """The next events of a target, in order."""

    events: Sequence[OutboxEvent]
    through: int
    """The id up to which there is nothing else for the target."""
    cooldowns: Sequence[Cooldown] = ()
    """Those of the streams in the page."""


@frozen
class OutboxProgress:
    """How far a target has come."""

    position: int
    delivered: int = 0
    suppressed: int = 0
    cooldowns: Sequence[Cooldown] = ()
    """As they are now, where they have changed."""


@frozen
class FailedDelivery:
    """What became of an attempt that failed."""

    why: str
    pause: timedelta
    """Until the next one."""
    give_up_after: timedelta
    for_good: bool


def event_id_of(event: OutboxEvent) -> int:
    """The place of an event in the outbox."""
    return event.alert_id if isinstance(event, StoredAlert) else event.event_id


def kind_of(event: OutboxEvent) -> str:
    return ALERT_EVENT if isinstance(event, StoredAlert) else event.kind
