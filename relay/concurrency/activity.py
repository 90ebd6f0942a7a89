"""Tells tasks whether anybody is connected, so that they leave the database alone meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field

REST_INTERVAL = 900.0
"""Seconds between two looks at the database while nobody is connected: longer than a serverless
database takes to fall asleep."""


@define(eq=False, repr=False)
class Activity:
    """Whether anybody is connected."""

    active: bool = False
    _begun: trio.Event = field(factory=trio.Event)
    _wakes: list[Callable[[], object]] = field(factory=list)

    def on_begin(self, wake: Callable[[], object]) -> None:
        """Have this called whenever the first client connects."""
        self._wakes.append(wake)

    def note(self, *, active: bool) -> None:
        """Note whether anybody is connected now."""
        begins, self.active = active and not self.active, active
        if begins:
            self._begun.set()
            self._begun = trio.Event()
            for wake in self._wakes:
                wake()

    async def rest(self, seconds: float = REST_INTERVAL) -> None:
        """While nobody is connected, wait so long; returns as soon as somebody is."""
        if not self.active:
            with trio.move_on_after(seconds):
                await self._begun.wait()


def always_active() -> Activity:
    """An `Activity` that is never idle, for tasks that never rest."""
    return Activity(active=True)
