"""Removes stills and clips that are too old or too many, and those of alerts that are gone.

A supervised task. Each relay removes what is in its own place. The files go first, then the rows: a
file without a row would be forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.clips.storage import NotStored, PictureStorage
from relay.clips.usage import PictureUsage
from relay.concurrency.activity import Activity, always_active
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreUnavailable
from relay.logs.throttle import ThrottledWarning
from relay.metrics import Metrics
from relay.model.alerts.alert_picture import MICROSECONDS_A_DAY, RemovablePicture

PICTURE_REMOVAL_BATCH = 200
"""Alerts whose files are removed at a time, at most."""
PICTURE_RETENTION_INTERVAL, MIN_PICTURE_RETENTION_INTERVAL = 600.0, 5.0
"""Seconds between two passes, and where more is written than may be kept."""
IDLE_PICTURE_RETENTION_INTERVAL = 3600.0
"""The same while nobody is connected."""
REMOVE_TIMEOUT = 60.0
"""Seconds to remove a batch of files."""
SPARE_DAYS = 2
"""Days after which a folder is removed whole, beyond those for which its files are kept."""

log = structlog.get_logger()


class RemovablePictures(Protocol):
    """The table of what is kept; `StoreUnavailable`."""

    async def usage(self) -> Mapping[str, int]:
        """The bytes that are kept, by the owner of the streams."""

    async def removable(
        self, place: str, older_than: timedelta, *, most: int
    ) -> Sequence[RemovablePicture]:
        """The oldest of a place whose time is over, or whose alert is there no more."""

    async def excess(
        self, place: str, *, of_owner: int, in_all: int, most: int
    ) -> Sequence[RemovablePicture]:
        """The oldest of a place that have to go, so that no owner has more bytes, nor all."""

    async def remove(self, alert_ids: Sequence[int]) -> int:
        """Forget what has been removed."""


@define(eq=False, repr=False)
class PictureRetention:
    """The supervised task."""

    _table: RemovablePictures
    _storage: PictureStorage
    _usage: PictureUsage
    _metrics: Metrics
    _days: int
    _activity: Activity = field(factory=always_active)
    _full: Wakeup = field(factory=Wakeup)
    _batch: int = PICTURE_REMOVAL_BATCH
    """Halved each time that removing one takes too long, and doubled when one is removed."""
    _failing: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("pictures of alerts are not removed")
    )

    def wake(self) -> None:
        """Tell that more is kept than may be."""
        self._full.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            with suppress(StoreUnavailable):  # there is no hurry
                await self.remove_all()
            await trio.sleep(MIN_PICTURE_RETENTION_INTERVAL)
            rest = PICTURE_RETENTION_INTERVAL - MIN_PICTURE_RETENTION_INTERVAL
            with trio.move_on_after(rest) as waiting:
                await self._full.wait()
            if waiting.cancelled_caught:
                await self._activity.rest(
                    IDLE_PICTURE_RETENTION_INTERVAL - PICTURE_RETENTION_INTERVAL
                )

    async def remove_all(self) -> None:
        """Go through all once; `StoreUnavailable`."""
        await self._look_at_usage()
        if not self._metrics.picture_bytes and not await self._table.usage():
            return  # nothing is kept: the place is not looked for
        try:
            place = await self._storage.place()
            await self._remove_from(place)
        except NotStored as problem:
            self._failing.warn(str(problem))

    async def _look_at_usage(self) -> None:
        self._usage.read(await self._table.usage())
        self._metrics.picture_bytes = self._usage.in_all

    async def _remove_from(self, place: str) -> None:
        while found := await self._table.removable(
            place, timedelta(days=self._days), most=self._batch
        ):
            await self._remove(found)
        if self._usage.too_much:
            limits = self._usage
            while found := await self._table.excess(
                place,
                of_owner=limits.of_owner_limit,
                in_all=limits.in_all_limit,
                most=self._batch,
            ):
                await self._remove(found)
            await self._look_at_usage()
        today = int(time.time() * 1_000_000) // MICROSECONDS_A_DAY
        with trio.move_on_after(REMOVE_TIMEOUT):
            await self._storage.sweep(today - self._days - SPARE_DAYS)

    async def _remove(self, found: Sequence[RemovablePicture]) -> None:
        names = [name for each in found for name in each.names]
        with trio.move_on_after(REMOVE_TIMEOUT) as scope:
            await self._storage.remove(names)
        if scope.cancelled_caught:
            self._batch = max(1, self._batch // 2)
            raise NotStored(f"it took longer than {REMOVE_TIMEOUT:g} s")
        self._batch = min(PICTURE_REMOVAL_BATCH, 2 * self._batch)
        removed = await self._table.remove([each.alert_id for each in found])
        self._metrics.pictures_removed += removed
