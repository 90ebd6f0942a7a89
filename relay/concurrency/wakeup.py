"""Lets many tasks wake the one that works for them."""

from __future__ import annotations

import trio
from attrs import define, field


@define(eq=False, repr=False)
class Wakeup:
    """An event that many set and one task waits for, again and again.

    Being set while that task is at work is remembered: its next wait returns at once.
    """

    _event: trio.Event = field(factory=trio.Event)

    def set(self) -> None:
        """Wake the task, now or when it waits next."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it has been set since the last wait returned."""
        await self._event.wait()
        self._event = trio.Event()
