"""Keeps the table of alerts from growing without end. Floor 2.

A supervised service. Relays that share a database all do this, which is harmless: what one of them
has removed the next one does not find.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NoReturn

import trio
from attrs import define, field

from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.postgres.alert_retention import BATCH, AlertRetention
from relay.turns import Turn

EVERY = 600.0
"""Seconds between looks at the whole table."""
PAUSE = 0.05
"""Seconds between batches, in which others have the lock."""


@define(eq=False)
class Retention:
    """Removes what is too old or too much."""

    _table: AlertRetention
    _metrics: Metrics
    _kept_for: timedelta
    _kept_of_a_stream: int
    turn: Turn = field(init=False, factory=Turn)
    """One question to the table."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            with suppress(StoreUnavailable):  # there is no hurry
                await self.look()
            await trio.sleep(EVERY)

    async def look(self) -> None:
        """Go through the whole table once."""
        await self._empty(partial(self._table.remove_old, self._kept_for))
        after: str | None = ""
        while after is not None:
            with self.turn:
                found, after = await self._table.find_excess(self._kept_of_a_stream, after=after)
            for excess in found:
                await self._empty(partial(self._table.remove_excess, excess))
            await trio.sleep(PAUSE)

    async def _empty(self, remove: Callable[[], Awaitable[int]]) -> None:
        removed = BATCH
        while removed == BATCH:
            with self.turn:
                removed = await remove()
            self._metrics.alerts_removed += removed
            if removed == BATCH:
                await trio.sleep(PAUSE)
