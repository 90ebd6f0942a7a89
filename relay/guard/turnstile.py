"""Keeps newcomers from taking all the time there is. Floor 2.

What is ready to run, Trio runs in one round. A thousand connections that do the costly part of
their beginning in the same round would hold up every frame for as long as that takes; here they
do it a few a round, in the order in which they came.
"""

from __future__ import annotations

import trio
from attrs import define, field

EACH_ROUND = 4


@define(eq=False)
class Turnstile:
    """Lets a few tasks through in each round."""

    _places: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(EACH_ROUND))

    async def turn(self) -> None:
        """Wait for one's turn."""
        async with self._places:
            await trio.lowlevel.checkpoint()
