"""Spreads costly work of many tasks over several rounds of the scheduler.

Trio runs all tasks that are ready in one round. If a thousand connections did the costly part of
their set-up in the same round, every frame would wait for it. Here a few do it per round, in the
order in which they came.
"""

from __future__ import annotations

import trio
from attrs import define, field

TASKS_PER_ROUND = 8
"""A connection waits for two turns, each of which takes 0.2 ms. One that was accepted just now
needs none to answer a request that is there; of these there are as few in a round. So all of them
take up to 3 ms."""


@define(eq=False, repr=False)
class RoundLimiter:
    """Lets a few tasks go on in each round."""

    _left: int = TASKS_PER_ROUND
    """Tasks that may go on before the next round."""
    _line: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def wait(self) -> None:
        """Wait until this task may go on; no checkpoint if it may at once."""
        if not self._left:
            await self._line.park()
            return
        self._left -= 1
        if not self._left:
            self._refill_soon()

    def _refill_soon(self) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(self._refill)

    def _refill(self) -> None:
        """Let those go on who wait, in the next round."""
        self._left = TASKS_PER_ROUND - len(self._line.unpark(count=TASKS_PER_ROUND))
        if not self._left:
            self._refill_soon()
