"""Frees the streams of owners who are gone, where the settings ask for it.

A supervised task. An owner is gone when the trigger on the user table has seen the user deleted;
where there is no such trigger, nobody is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.concurrency.progress import Progress
from relay.errors import StoreUnavailable

MAX_RECLAIM_INTERVAL = 600.0
"""Seconds between two looks; shorter where streams are reclaimed sooner."""

log = structlog.get_logger()


class ReclaimableStreams(Protocol):
    """The streams, and whether their owners are gone; `StoreUnavailable`."""

    async def reclaim(self, age: timedelta) -> Sequence[str]:
        """Free some streams whose owner was deleted at least this long ago; returns their ids."""


class DeletionTrigger(Protocol):
    """The trigger on the user table; `StoreUnavailable`."""

    async def note_deletions(self) -> bool:
        """Whether deleted users are noted."""


@define(eq=False, repr=False)
class StreamReclaim:
    """Frees streams some time after their owner was deleted."""

    _streams: ReclaimableStreams
    _trigger: DeletionTrigger
    _age: timedelta
    progress: Progress = field(init=False, factory=Progress)
    _warned: bool = False

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            with suppress(StoreUnavailable):  # there is no hurry
                await self._look()
            await trio.sleep(min(MAX_RECLAIM_INTERVAL, self._age.total_seconds()))

    async def _look(self) -> None:
        with self.progress:
            noted = await self._trigger.note_deletions()
        if not noted and not self._warned:
            self._warned = True
            log.warning(
                "no trigger notes deleted users, so no new streams are reclaimed;"
                " run `relay db migrate --watch-sessions`"
            )
        freed: Sequence[str] = ["first"]
        while freed:
            with self.progress:
                freed = await self._streams.reclaim(self._age)
            if freed:
                log.info("streams of deleted users were freed", streams=len(freed))
