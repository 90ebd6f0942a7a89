"""Stores alerts, those that arrive together with one commit. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, field

from relay.batching import Batcher
from relay.metrics import Metrics
from relay.model import Identity, NewAlert, StoredAlert
from relay.postgres.alerts import AlertTable
from relay.protocol.messages import Alert, now_ms


@define(eq=False)
class AlertIntake:
    """Commits alerts before they are acknowledged."""

    _table: AlertTable
    _metrics: Metrics
    _stored: Callable[[int | None], object]
    """Called when there may be something to dispatch, up to this id if that is known."""
    service: Batcher[NewAlert, StoredAlert | None] = field(init=False)
    """Runs under the supervisor."""

    def __attrs_post_init__(self) -> None:
        self.service = Batcher(self._store)

    async def accept(self, alert: NewAlert) -> StoredAlert | None:
        """The alert as committed; None when its sender may send none for this stream.

        `StoreUnavailable` when it cannot be stored now: then it may or may not be, and only the
        same `alert_key` again is safe from storing it twice.
        """
        return await self.service.ask(alert)

    async def _store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | None]:
        try:
            stored = await self._table.store(alerts)
        except BaseException:
            self._stored(None)  # a commit may have gone through unheard
            raise
        fresh = [alert.alert_id for alert in stored if alert is not None and alert.fresh]
        self._metrics.alerts_stored += len(fresh)
        if fresh:
            self._stored(fresh[-1])
        return stored


def alert_from(sender: Identity, message: Alert) -> NewAlert:
    """What somebody asks to be stored; whether they may is seen when it is."""
    return NewAlert(
        stream_id=message.stream_id,
        sender=sender.sender,
        severity=message.severity,
        message=message.message,
        timestamp=now_ms() if message.timestamp is None else int(message.timestamp),
        metadata=message.metadata,
        alert_key=message.alert_key,
        by=sender,
    )
