"""Notes for which browsers an alert or an event may be, before the outbox looks for them.

A supervised task. Users make many targets, and there are many grants: so each alert is looked at
once, for all. That may take longer than looking for the few targets of operators, which do not wait
for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

import trio
from attrs import define, field

from relay.concurrency.activity import REST_INTERVAL, Activity, always_active
from relay.concurrency.backoff import Backoff
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.logs.throttle import ThrottledWarning

MAX_WOKEN_EVENTS = 2000
"""Alerts and events that are looked at in one transaction: fewer when that takes too long."""
WAKE_INTERVAL = 0.1
"""Seconds between two transactions."""
WAKE_POLL_INTERVAL = 2.0
"""Seconds between two looks when nothing new is signalled, while anybody is connected."""
FIRST_WAKE_BACKOFF, MAX_WAKE_BACKOFF = 1.0, 15.0
"""Seconds after an attempt that failed."""


class ViewerTargets(Protocol):
    """The targets of users; `StoreUnavailable`, `StoreRejects`."""

    async def wake_viewers(self, most: int) -> bool | None:
        """Note for which there is something, of so many alerts and events at most. Returns whether
        there may be more; None if there was nothing."""


@define(eq=False, repr=False)
class ViewerWaker:
    """The supervised task."""

    _targets: ViewerTargets
    _woken: Callable[[], object]
    """Tells the outbox."""
    _activity: Activity = field(factory=always_active)
    progress: Progress = field(init=False, factory=Progress)
    """One transaction."""
    _most: int = MAX_WOKEN_EVENTS
    _backoff: Backoff = field(factory=lambda: Backoff(FIRST_WAKE_BACKOFF, MAX_WAKE_BACKOFF))
    _wake: Wakeup = field(factory=Wakeup)
    _warning: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("browsers are not told of alerts for now")
    )

    def __attrs_post_init__(self) -> None:
        self._activity.on_begin(self._wake.set)

    def wake(self) -> None:
        """Tell that there may be new alerts or events."""
        self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            pause = await self._look()
            await trio.sleep(WAKE_INTERVAL)
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def _look(self) -> float:
        """Look at what is new; returns the seconds until the next look, if nothing is signalled."""
        try:
            with self.progress:
                more = await self._targets.wake_viewers(self._most)
        except (StoreUnavailable, StoreRejects) as why:
            self._most = max(1, self._most // 2)
            self._warning.warn(str(why))
            return self._backoff.next()
        self._backoff.reset()
        if more is not None:
            self._most = min(self._most * 2, MAX_WOKEN_EVENTS)
            self._woken()
        if more:
            return 0.0
        return WAKE_POLL_INTERVAL if self._activity.active else REST_INTERVAL
