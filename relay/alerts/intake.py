"""Stores alerts; those that arrive together share a commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from attrs import define, evolve, field

from relay.concurrency.batcher import Batcher
from relay.errors import AlertsFull
from relay.logs.throttle import ThrottledWarning
from relay.metrics import Limit, Metrics
from relay.model.access.identity import Identity
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert
from relay.model.trace_context import TraceContext
from relay.protocol.messages import Alert, now_ms
from relay.tracing.tracer import NO_TRACER, Span, TracedStep, Tracer

FULL_FOR_SENDER = (
    "This sender has stored too many bytes of alerts; the oldest are removed when they are an"
    " hour old"
)
FULL_AT_ALL = "relay has stored as many bytes of alerts as it may; the oldest are removed soon"
FULL_RETRY_AFTER = 60
"""Seconds after which there may be room again."""


class AlertWriter(Protocol):
    """Commits alerts to a table."""

    async def store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | NoRoom | None]:
        """Store a batch in one transaction; one entry for each, in order: None where the sender may
        not alert the stream. `StoreUnavailable`."""


@define(eq=False, repr=False)
class AlertIntake:
    """Commits alerts before they are acknowledged."""

    _table: AlertWriter
    _metrics: Metrics
    _stored: Callable[[int | None], object]
    """Called when there may be new alerts to deliver, up to this id if it is known."""
    _tracer: Tracer = NO_TRACER
    _full: ThrottledWarning = field(
        init=False, factory=lambda: ThrottledWarning("alerts are refused")
    )
    service: Batcher[NewAlert, StoredAlert | NoRoom | None] = field(init=False)
    """Runs under the supervisor."""

    def __attrs_post_init__(self) -> None:
        self.service = Batcher(self._store)

    async def accept(self, alert: NewAlert) -> StoredAlert | None:
        """The alert as committed; None when its sender may send none for this stream.

        `StoreUnavailable` when it is unknown whether it was stored: sent again, only the same
        `alert_key` keeps it from being stored twice. `AlertsFull` when there is no room for it.
        """
        with self._tracer.begin(TracedStep.ACCEPT, alert.trace) as span:
            stored = await self.service.ask(_with_trace(alert, span.context))
            _note_outcome(span, stored)
            if isinstance(stored, NoRoom):
                self._metrics.limits_hit[Limit.ALERT_BYTES] += 1
                if stored is NoRoom.AT_ALL:
                    self._full.warn("as many bytes of them are stored as alert_bytes allows")
                raise AlertsFull(FULL_FOR_SENDER if stored is NoRoom.FOR_SENDER else FULL_AT_ALL)
        return stored

    async def _store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | NoRoom | None]:
        try:
            with self._storing(alerts) as traced:
                stored = await self._table.store(traced)
        except BaseException:
            self._stored(None)  # it may be committed all the same
            raise
        fresh = [each.alert_id for each in stored if isinstance(each, StoredAlert) and each.fresh]
        self._metrics.alerts_stored += len(fresh)
        if fresh:
            self._stored(fresh[-1])
        return stored

    @contextmanager
    def _storing(self, alerts: Sequence[NewAlert]) -> Iterator[list[NewAlert]]:
        """The alerts as they are stored: each traced one with a span of this transaction."""
        with ExitStack() as spans:
            traced = []
            for alert in alerts:
                if alert.trace is None:
                    traced.append(alert)
                    continue
                span = spans.enter_context(self._tracer.follow(TracedStep.STORE, alert.trace))
                span.note("alerts.together", len(alerts))
                traced.append(_with_trace(alert, span.context))
            yield traced


def _with_trace(alert: NewAlert, trace: TraceContext | None) -> NewAlert:
    return alert if alert.trace is trace else evolve(alert, trace=trace)


def _note_outcome(span: Span, stored: StoredAlert | NoRoom | None) -> None:
    """Nothing of an alert that was not stored: what it says it is for may be anything."""
    if isinstance(stored, StoredAlert):
        span.note("alert.id", stored.alert_id)
        span.note("alert.severity", stored.severity)
        span.note("alert.fresh", stored.fresh)
        span.note("stream.id", stored.stream_id)
    elif stored is None:
        span.fail("the sender may not alert this stream")


def alert_from(sender: Identity, message: Alert) -> NewAlert:
    """The alert that a message asks to store; permission is checked when it is stored."""
    return NewAlert(
        stream_id=message.stream_id,
        sender=sender.sender,
        severity=message.severity,
        message=message.message,
        timestamp=now_ms() if message.timestamp is None else int(message.timestamp),
        metadata=message.metadata,
        alert_key=message.alert_key,
        frame=message.frame is True,
        by=sender,
        trace=TraceContext.parse(message.traceparent, message.tracestate),
    )
