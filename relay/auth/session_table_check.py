"""Says in the log why tokens may be unknown that are not wrong: see `suspicions` of the table.

A supervised task that looks when a token was not found, and not again for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreForbids, StoreRejects, StoreUnavailable
from relay.model.suspicion import Suspicion

CHECK_INTERVAL = 3600.0
"""Seconds between two looks."""

log = structlog.get_logger()


class SessionRows(Protocol):
    """The session table."""

    async def suspicions(self) -> Sequence[Suspicion]:
        """What makes it unlikely that the table has the sessions of anybody's tokens;
        `StoreUnavailable`."""


@define(eq=False, repr=False)
class SessionTableCheck:
    """Looks at the session table after a token was not found in it."""

    _sessions: SessionRows
    progress: Progress = field(init=False, factory=Progress)
    _unknown: Wakeup = field(factory=Wakeup)

    def unknown(self) -> None:
        """A token was not found."""
        self._unknown.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            await self._unknown.wait()
            try:
                with self.progress:
                    found = await self._sessions.suspicions()
            except (StoreUnavailable, StoreForbids, StoreRejects):
                found = []
            for each in found:
                log.warning("session tokens are unknown", why=each.said, do=each.do)
            await trio.sleep(CHECK_INTERVAL)
