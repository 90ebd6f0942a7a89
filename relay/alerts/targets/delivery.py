"""What the outbox asks of the kinds of targets.

An adapter delivers events to all targets of its kind. The outbox keeps their order, tries again
after failures, and applies the rules; an adapter makes one attempt, and says what became of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

from relay.model.alerts.alert import StoredAlert
from relay.model.alerts.alert_picture import PictureName
from relay.model.alerts.picture_link import PictureLinks
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.outbox import OutboxEvent
from relay.model.trace_context import TraceContext


@frozen
class Delivery:
    """An event for a target: the same at each attempt."""

    event: OutboxEvent
    suppressed: int = 0
    """How many of the same kind and stream the target's cooldown has left out since the last."""
    picture_links: Mapping[str, str] = field(factory=dict, repr=False)
    """Links to what is kept with an alert, by the names that they have in messages."""
    trace: TraceContext | None = None
    """This attempt in the trace of the event, for the target to continue."""


@frozen
class Delivered:
    """The target has accepted the event."""


@frozen
class RetryLater:
    """The target has not, and may if asked again."""

    why: str
    """For operators. It quotes nothing of the request or the answer."""
    after: float | None = None
    """Seconds for which the target asked to be left alone; None: it did not say."""


@frozen
class GoneForGood:
    """The target will not accept anything any more."""

    why: str
    forget: bool = False
    """Whether to remove it; otherwise it is shown as given up, and an operator may resume it."""


@frozen
class Undeliverable:
    """No message can be made of this event: it is skipped, and those behind it go on."""


@frozen
class Withheld:
    """The target does not get this event, by what is so at this moment: it is skipped, and those
    behind it go on."""


DeliveryOutcome = Delivered | RetryLater | GoneForGood | Undeliverable | Withheld


class TargetAdapter(Protocol):
    """Delivers to the targets of one kind. Several deliveries run at the same time, one for each
    target."""

    async def deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        """Make one attempt; the outbox sets its deadline. What it raises counts as a failure, and
        is logged as a bug."""

    async def test(self, target: AlertTarget) -> DeliveryOutcome:
        """Deliver a message that tries whether the target works."""


def picture_links_of(event: OutboxEvent, links: PictureLinks) -> dict[str, str]:
    """The links to what is kept with an alert, or is to be, by their names in messages: the same
    ones whatever becomes of it."""
    if not isinstance(event, StoredAlert):
        return {}
    found = {}
    if event.still is not None:
        found["stillUrl"] = links.link_to(PictureName(event.alert_id, "still"))
    if event.clip is not None:
        found["clipUrl"] = links.link_to(PictureName(event.alert_id, "clip"))
    return found
