"""Lets others go on while one task has much to do."""

from __future__ import annotations

from time import perf_counter

import trio
from attrs import define

TIME_SLICE = 0.001
"""Seconds. What one step takes comes on top."""


@define(init=False)
class TimeSlice:
    """The time that a task may go on before the others get a turn; begins when it is made."""

    _ends: float

    def __init__(self) -> None:
        self._ends = perf_counter() + TIME_SLICE

    @property
    def over(self) -> bool:
        return perf_counter() >= self._ends

    async def pause(self) -> None:
        """Give the others a turn, and begin anew."""
        await trio.lowlevel.checkpoint()
        self._ends = perf_counter() + TIME_SLICE

    async def pause_if_over(self) -> None:
        """Give the others a turn, if it is time for that."""
        if self.over:
            await self.pause()
