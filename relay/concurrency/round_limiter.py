"""Spreads costly work of many tasks over several rounds of the scheduler.

Trio runs all tasks that are ready in one round. If a thousand connections did the costly part of
their set-up in the same round, every frame would wait for it. Here a few do it per round, in the
order in which they came.
"""

from __future__ import annotations

import trio
from attrs import define, field

TASKS_PER_ROUND = 4


@define(eq=False)
class RoundLimiter:
    """Lets a few tasks go on in each round."""

    _slots: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(TASKS_PER_ROUND))

    async def wait(self) -> None:
        """Wait until this task may go on."""
        async with self._slots:
            await trio.lowlevel.checkpoint()
