"""Delivers alerts and stream events to targets, to each in order, at least once.

A supervised task. It leases targets that have events waiting, and serves each in a task of its
own, so that a target that hangs holds up no other; each kind of target has places of its own, so
that one kind holds up no other either. What a target wants is in its rules; how it is delivered is
in the adapter of its kind (`targets/`). After a failure it tries again later and later, and gives
up after a day; `relay webhook test` resumes the target from its position.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, Protocol
from uuid import UUID, uuid4

import structlog
import trio
from attrs import define, evolve, field

from relay.alerts.targets.delivery import (
    Delivered,
    Delivery,
    DeliveryOutcome,
    GoneForGood,
    RetryLater,
    TargetAdapter,
    Undeliverable,
    Withheld,
    picture_links_of,
)
from relay.alerts.targets.webhook import WEBHOOK_KIND
from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.backoff import pause_after
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import StoredAlert
from relay.model.alerts.picture_link import PictureLinks
from relay.model.targets.alert_target import AlertTarget, Cooldown
from relay.model.targets.outbox import (
    EventPage,
    FailedDelivery,
    OutboxEvent,
    OutboxProgress,
    event_id_of,
    kind_of,
)
from relay.tracing.tracer import NO_TRACER, Span, TracedStep, Tracer

MAX_ACTIVE_TARGETS = 64
"""Targets of one kind that one relay serves at a time."""
DELIVERY_TIMEOUT = 10.0
"""Seconds for one attempt to deliver."""
LEASE_TIME = timedelta(seconds=30)
"""How long a lease lasts unless it is renewed; longer than the delivery of one event takes."""
MAX_SERVING_TIME = 20.0
"""Seconds after which a target makes room for another, with the delivery that has begun."""
OUTBOX_POLL_INTERVAL = 2.0
"""Seconds between two claims when no new event is signalled, while anybody is connected."""
MAX_EVENT_READS = 3
"""Attempts to read an alert for a target, while the store answers; then it is skipped."""
MIN_CLAIM_INTERVAL = 0.1
"""Seconds between two claims at least, however many events are signalled."""
FIRST_DELIVERY_BACKOFF, MAX_DELIVERY_BACKOFF = 2.0, 900.0
"""Seconds from a failure to the next attempt: doubled each time, give or take a half."""
GIVE_UP_AFTER = timedelta(days=1)
"""The time from the first failure until a target is given up."""
GIVE_VIEWERS_UP_AFTER = timedelta(days=14)
"""The same for a target of a user, which no operator resumes."""
RELEASE_TIMEOUT = 2.0
"""Seconds to release the lease of a target when relay stops."""

log = structlog.get_logger()


class TargetQueue(Protocol):
    """The targets and their events; `StoreUnavailable` while the tables are away."""

    async def claim(
        self, lease: UUID, *, lasts: timedelta, room: Mapping[str, int]
    ) -> list[AlertTarget]:
        """Lease targets that have events waiting: at most so many of each kind."""

    async def next_due(self) -> float | None:
        """Seconds until a target is to be tried again, or its lease runs out; None when there is
        none."""

    async def behind(self, target: AlertTarget, position: int) -> EventPage:
        """The next events after a position, in order. `StoreRejects` when the next alert can be
        read by no means."""

    async def next_id(self, target: AlertTarget, position: int) -> int | None:
        """The id of the next alert after a position; None when there is none."""

    async def advance(
        self, target: AlertTarget, lease: UUID, progress: OutboxProgress, *, lasts: timedelta
    ) -> bool:
        """Advance the position and renew the lease; False when the lease is lost."""

    async def failed(self, target: AlertTarget, lease: UUID, failure: FailedDelivery) -> bool:
        """Put the next attempt off; whether the target is given up."""

    async def release(self, target: AlertTarget, lease: UUID) -> None:
        """End a lease."""

    async def forget(self, target: AlertTarget, lease: UUID) -> None:
        """Remove a target that is gone for good."""


@define(eq=False, repr=False)
class CooldownBook:
    """Which events of a page a target's cooldown suppresses.

    By the ids of events, which are times: it decides the same however often it is asked, and
    whatever the delivery takes.
    """

    _seconds: int
    _known: dict[tuple[str, str], Cooldown]
    _changed: dict[tuple[str, str], Cooldown] = field(factory=dict)
    """What is not stored yet."""
    _suppressed: list[OutboxEvent] = field(factory=list)
    """Since the last progress."""

    @classmethod
    def of(cls, target: AlertTarget, page: EventPage) -> CooldownBook:
        known = {(each.stream_id, each.kind): each for each in page.cooldowns}
        return cls(target.rules.cooldown, known)

    def plan(self, event: OutboxEvent) -> Delivery | None:
        """The delivery of an event; None when it is suppressed, which is counted."""
        key = event.stream_id, kind_of(event)
        before = self._known.get(key)
        if before is None:
            return Delivery(event)
        if event_id_of(event) - before.delivered_id >= self._seconds * 1_000_000:
            return Delivery(event, before.suppressed)
        self._note(Cooldown(*key, before.delivered_id, before.suppressed + 1))
        self._suppressed.append(event)
        return None

    def note_delivered(self, event: OutboxEvent) -> None:
        if self._seconds:
            self._note(Cooldown(event.stream_id, kind_of(event), event_id_of(event), 0))

    def take_suppressed(self) -> OutboxProgress | None:
        """What is to be stored of events that were suppressed; None if none were."""
        if not self._suppressed:
            return None
        last, number = self._suppressed[-1], len(self._suppressed)
        self._suppressed = []
        return OutboxProgress(event_id_of(last), suppressed=number, cooldowns=self.take_changed())

    def take_changed(self) -> list[Cooldown]:
        changed, self._changed = [*self._changed.values()], {}
        return changed

    def _note(self, now: Cooldown) -> None:
        key = now.stream_id, now.kind
        self._known[key] = self._changed[key] = now


@define(eq=False, repr=False)
class Outbox:
    """The supervised task."""

    _queue: TargetQueue
    _adapters: Mapping[str, TargetAdapter]
    """By kind. Targets of other kinds are left to other relays."""
    _metrics: Metrics
    _activity: Activity = field(factory=always_active)
    _links: PictureLinks | None = None
    """Signs links to stills and clips; None delivers alerts without."""
    _tracer: Tracer = NO_TRACER
    progress: Progress = field(init=False, factory=Progress)
    """Leasing targets; each attempt has a deadline of its own."""
    _lease: UUID = field(factory=uuid4)
    _active: dict[str, int] = field(factory=dict)
    """How many targets of each kind are being served."""
    _wake: Wakeup = field(factory=Wakeup)
    _failed_reads: dict[str, tuple[int, int]] = field(factory=dict)
    """For each target whose next alert could not be read: its position, and how often."""

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._wake.set)

    def wake(self) -> None:
        """Tell that there may be new events."""
        self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._active, self._lease = dict.fromkeys(self._adapters, 0), uuid4()
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                for target in await self._claim():
                    self._active[target.kind] += 1
                    nursery.start_soon(self._serve, target)
                await trio.sleep(MIN_CLAIM_INTERVAL)
                with trio.move_on_after(await self._pause() - MIN_CLAIM_INTERVAL):
                    await self._wake.wait()

    async def _pause(self) -> float:
        """Seconds until the next claim, if no event is signalled."""
        if self._activity.active:
            return OUTBOX_POLL_INTERVAL
        try:
            with self.progress:
                due = await self._queue.next_due()
        except (StoreUnavailable, StoreRejects):
            return OUTBOX_POLL_INTERVAL
        if due is None:
            return REST_INTERVAL
        return min(max(due + 2 * MIN_CLAIM_INTERVAL, OUTBOX_POLL_INTERVAL), REST_INTERVAL)

    async def _claim(self) -> list[AlertTarget]:
        room = {
            kind: MAX_ACTIVE_TARGETS - active
            for kind, active in self._active.items()
            if active < MAX_ACTIVE_TARGETS
        }
        if not room:
            return []
        try:
            with self.progress:
                return await self._queue.claim(self._lease, lasts=LEASE_TIME, room=room)
        except (StoreUnavailable, StoreRejects):
            return []

    async def _serve(self, target: AlertTarget) -> None:
        """Deliver a page of events, and release the target, since others may be waiting."""
        try:
            if await self._deliver_page(target):
                await self._queue.release(target, self._lease)
        except (StoreUnavailable, StoreRejects):
            pass  # the lease runs out; other targets go on
        except trio.Cancelled:
            with trio.move_on_after(RELEASE_TIMEOUT, shield=True), suppress(StoreUnavailable):
                await self._queue.release(target, self._lease)
            raise
        finally:
            self._active[target.kind] -= 1
            self._wake.set()

    async def _deliver_page(self, target: AlertTarget) -> bool:
        """Returns whether the target is still leased to us."""
        unavailable: StoreUnavailable | None = None
        try:
            page = await self._queue.behind(target, target.position)
        except StoreRejects as why:
            return await self._skip(target, why)
        except StoreUnavailable as why:
            unavailable = why
        if unavailable:
            if await self._is_unreadable(target):
                return await self._skip(target, unavailable)
            raise unavailable
        self._failed_reads.pop(target.target_id, None)
        return await self._deliver_all(target, page)

    async def _deliver_all(self, target: AlertTarget, page: EventPage) -> bool:
        book = CooldownBook.of(target, page)
        position, is_cut = target.position, False
        until = trio.current_time() + MAX_SERVING_TIME
        for event in page.events:
            if trio.current_time() >= until:
                is_cut = True
                break
            delivery = book.plan(event)
            if delivery is None:
                position = event_id_of(event)
                continue
            if not await self._store_suppressed(target, book):
                return False
            outcome = await self._deliver(target, self._with_links(delivery))
            if isinstance(outcome, RetryLater | GoneForGood):
                await self._record_failure(target, outcome)
                return False
            position = event_id_of(event)
            delivered = isinstance(outcome, Delivered)
            if delivered:
                book.note_delivered(event)
            progress = OutboxProgress(
                position, delivered=int(delivered), cooldowns=book.take_changed()
            )
            if not await self._queue.advance(target, self._lease, progress, lasts=LEASE_TIME):
                return False
        if not await self._store_suppressed(target, book):
            return False
        if page.through > position and not is_cut:
            progress = OutboxProgress(page.through)
            return await self._queue.advance(target, self._lease, progress, lasts=LEASE_TIME)
        return True

    async def _store_suppressed(self, target: AlertTarget, book: CooldownBook) -> bool:
        """Advance past suppressed events; False when the lease is lost."""
        progress = book.take_suppressed()
        if progress is None:
            return True
        self._count(target, "suppressed", progress.suppressed)
        return await self._queue.advance(target, self._lease, progress, lasts=LEASE_TIME)

    async def _is_unreadable(self, target: AlertTarget) -> bool:
        """Whether the next alert could not be read again and again, though the store answers."""
        await self._queue.next_id(target, target.position)
        position, failed = self._failed_reads.get(target.target_id, (target.position, 0))
        failed = failed + 1 if position == target.position else 1
        self._failed_reads[target.target_id] = target.position, failed
        return failed >= MAX_EVENT_READS

    async def _skip(self, target: AlertTarget, why: StoreRejects | StoreUnavailable) -> bool:
        """Advance past an alert that can be read by no means."""
        self._failed_reads.pop(target.target_id, None)
        alert_id = await self._queue.next_id(target, target.position)
        if alert_id is None:
            return True
        self._metrics.alerts_unreadable += 1
        log.error(
            "alert cannot be read: no target gets it",
            target=target.target_id,
            alert_id=alert_id,
            why=str(why),
        )
        progress = OutboxProgress(alert_id)
        return await self._queue.advance(target, self._lease, progress, lasts=LEASE_TIME)

    async def _deliver(self, target: AlertTarget, delivery: Delivery) -> DeliveryOutcome:
        event = delivery.event
        trace = event.trace if isinstance(event, StoredAlert) else None
        with self._tracer.follow(TracedStep.POST, trace) as span:
            traced = delivery if span.context is None else evolve(delivery, trace=span.context)
            outcome = await attempt(self._adapters[target.kind], target, traced)
            _note_attempt(span, target, delivery, outcome)
        if isinstance(outcome, Delivered):
            self._count(target, "delivered")
        elif isinstance(outcome, Withheld):
            self._count(target, "withheld")
        elif isinstance(outcome, Undeliverable):
            self._metrics.alerts_unreadable += 1
        return outcome

    def _with_links(self, delivery: Delivery) -> Delivery:
        """The delivery with links to what is kept with its alert."""
        if self._links is None:
            return delivery
        return evolve(delivery, picture_links=picture_links_of(delivery.event, self._links))

    async def _record_failure(self, target: AlertTarget, outcome: RetryLater | GoneForGood) -> None:
        self._count(target, "failed")
        if isinstance(outcome, GoneForGood) and outcome.forget:
            await self._queue.forget(target, self._lease)
            log.debug("target is gone", target=target.target_id, kind=target.kind, why=outcome.why)
            return
        pause = pause_after(
            target.failures, first=FIRST_DELIVERY_BACKOFF, longest=MAX_DELIVERY_BACKOFF
        )
        pause *= random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        if isinstance(outcome, RetryLater) and outcome.after is not None:
            pause = min(max(pause, outcome.after), MAX_DELIVERY_BACKOFF)
        failure = FailedDelivery(
            outcome.why,
            pause=timedelta(seconds=pause),
            give_up_after=GIVE_UP_AFTER if target.viewer is None else GIVE_VIEWERS_UP_AFTER,
            for_good=isinstance(outcome, GoneForGood),
        )
        given_up = await self._queue.failed(target, self._lease, failure)
        about = {target.kind: target.target_id, "why": outcome.why}
        if given_up:
            self._count(target, "given_up")
        if target.viewer is not None:  # users make many, and their services fail together
            log.debug("browser not reached", given_up=given_up, **about)
        elif given_up:
            what = f"{target.kind} given up"
            log.error(what, **about)
        elif target.failures == 0:
            what = f"{target.kind} fails"
            log.warning(what, **about)

    def _count(self, target: AlertTarget, outcome: str, number: int = 1) -> None:
        self._metrics.target_events[target.kind, outcome] += number
        if target.kind == WEBHOOK_KIND and outcome != "suppressed":
            self._metrics.webhook_alerts[outcome] += number


def _note_attempt(
    span: Span, target: AlertTarget, delivery: Delivery, outcome: DeliveryOutcome
) -> None:
    span.note("alert.id", event_id_of(delivery.event))
    span.note("target.id", target.target_id)
    span.note("target.kind", target.kind)
    span.note("target.failures", target.failures)
    if isinstance(outcome, RetryLater | GoneForGood):
        span.fail(outcome.why)
    elif isinstance(outcome, Undeliverable):
        span.fail("no message can be made of it")


async def attempt(
    adapter: TargetAdapter, target: AlertTarget, delivery: Delivery | None
) -> DeliveryOutcome:
    """Deliver, or test the target if there is nothing to deliver, within the deadline. A bug with
    one target must not stop others."""
    try:
        with trio.fail_after(DELIVERY_TIMEOUT):
            if delivery is None:
                return await adapter.test(target)
            return await adapter.deliver(target, delivery)
    except trio.TooSlowError:
        return RetryLater(f"no answer within {DELIVERY_TIMEOUT:g} s")
    except Exception as bug:
        log.exception("target not called", target=target.target_id, kind=target.kind)
        return RetryLater(f"relay failed: {type(bug).__name__}")
