"""Hands stored alerts to the consumers that are connected. Floor 2.

It reads them from the table in the order of their commits, from where it last was: what was
committed is dispatched, also when this service failed in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import structlog
import trio
from attrs import define, field

from relay.errors import StoreUnavailable
from relay.model import StoredAlert
from relay.postgres.alerts import AlertTable

RETRY = 1.0
"""Seconds between questions while the store is away."""

log = structlog.get_logger()


@define(eq=False)
class AlertDispatch:
    """The supervised service that delivers alerts."""

    _table: AlertTable
    _deliver: Callable[[StoredAlert], object]
    """Gives one alert to all who are connected and consume it; never waits."""
    _position: int | None = None
    """The last alert that was delivered; None before the first look."""
    _wake: trio.Event = field(factory=trio.Event)

    def wake(self) -> None:
        """Say that there may be something new."""
        self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        if self._position is None:
            self._position = await self._table.latest_id()
        task_status.started()
        while True:
            self._wake = trio.Event()
            try:
                while alerts := await self._table.after(self._position):
                    for alert in alerts:
                        self._position = alert.alert_id
                        self._deliver_one(alert)
            except StoreUnavailable:
                await trio.sleep(RETRY)
            else:
                await self._wake.wait()

    def _deliver_one(self, alert: StoredAlert) -> None:
        try:
            self._deliver(alert)
        except Exception:  # a poisoned alert must not stop those behind it
            log.exception("alert not delivered", alert_id=alert.alert_id)
