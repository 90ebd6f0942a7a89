"""Keeps the table of alerts from growing without end.

A supervised task. Relays that share a database all do this, which is harmless: what one of them has
removed the next one does not find.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import NoReturn, Protocol

import trio
from attrs import define, field

from relay.concurrency.activity import Activity, always_active
from relay.concurrency.progress import Progress
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model.alerts.alert import ExcessAlerts, ExcessBytes

REMOVAL_BATCH = 500
"""Alerts that are removed at once."""
RETENTION_INTERVAL = 600.0
"""Seconds between two passes through the whole table."""
IDLE_RETENTION_INTERVAL = 3600.0
"""The same while nobody is connected."""
REMOVAL_PAUSE = 0.05
"""Seconds between batches, in which others can take the lock."""


class RemovableAlerts(Protocol):
    """The stored alerts, to be removed in batches; `StoreUnavailable`."""

    async def remove_old(self, older_than: timedelta, *, most: int) -> int:
        """Remove the oldest alerts, at most `most`; returns how many."""

    async def remove_excess(self, excess: ExcessAlerts, *, most: int) -> int:
        """Remove the oldest alerts of a stream, at most `most`; returns how many."""

    async def find_heavy(self) -> Sequence[ExcessBytes]:
        """The senders whose alerts take too many bytes, each with the bytes to free."""

    async def remove_heavy(self, excess: ExcessBytes, *, most: int) -> tuple[int, int]:
        """Remove the oldest alerts of a sender, at most `most`, but none of the last hour; returns
        how many, and their bytes."""

    async def find_excess(self, keep: int, *, after: str) -> tuple[list[ExcessAlerts], str | None]:
        """Look at some of the streams whose ids follow `after`; returns those with more than `keep`
        alerts, and the last id that was looked at, None when there are no more streams."""

    async def remove_cooldowns(self, *, most: int) -> int:
        """Remove what is known of cooldowns of targets that are over, at most `most`; returns how
        many."""


@define(eq=False, repr=False)
class Retention:
    """Removes alerts that are too old, too many for their stream, or too heavy for their sender."""

    _table: RemovableAlerts
    _metrics: Metrics
    _kept_for: timedelta
    _kept_per_stream: int
    _activity: Activity = field(factory=always_active)
    progress: Progress = field(init=False, factory=Progress)
    """One query."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            with suppress(StoreUnavailable):  # there is no hurry
                await self.remove_all()
            await trio.sleep(RETENTION_INTERVAL)
            await self._activity.rest(IDLE_RETENTION_INTERVAL - RETENTION_INTERVAL)

    async def remove_all(self) -> None:
        """Go through the whole table once."""
        await self._remove_in_batches(partial(self._table.remove_old, self._kept_for))
        after: str | None = ""
        while after is not None:
            with self.progress:
                found, after = await self._table.find_excess(self._kept_per_stream, after=after)
            for excess in found:
                await self._remove_in_batches(partial(self._table.remove_excess, excess))
            await trio.sleep(REMOVAL_PAUSE)
        with self.progress:
            heavy = await self._table.find_heavy()
        for each in heavy:
            await self._make_room(each)
        removed = REMOVAL_BATCH
        while removed == REMOVAL_BATCH:
            with self.progress:
                removed = await self._table.remove_cooldowns(most=REMOVAL_BATCH)
            await trio.sleep(REMOVAL_PAUSE)

    async def _make_room(self, excess: ExcessBytes) -> None:
        while excess.bytes > 0:
            with self.progress:
                removed, freed = await self._table.remove_heavy(excess, most=REMOVAL_BATCH)
            if not removed:
                return  # the others are too young
            self._metrics.alerts_removed += removed
            excess = ExcessBytes(excess.sender, excess.bytes - freed)
            await trio.sleep(REMOVAL_PAUSE)

    async def _remove_in_batches(self, remove: Callable[..., Awaitable[int]]) -> None:
        removed = REMOVAL_BATCH
        while removed == REMOVAL_BATCH:
            with self.progress:
                removed = await remove(most=REMOVAL_BATCH)
            self._metrics.alerts_removed += removed
            if removed == REMOVAL_BATCH:
                await trio.sleep(REMOVAL_PAUSE)
