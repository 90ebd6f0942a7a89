"""Lines of the log about what goes on for a while, said now and then instead of each time. Floor
0."""

from __future__ import annotations

import structlog
import trio
from attrs import define

EVERY = 60.0
"""Seconds between two lines that say the same."""
LEAST = 1.0
"""Seconds between any two."""

log = structlog.get_logger()


@define(eq=False)
class Complaint:
    """What is wrong, and why at the moment."""

    _event: str
    _why: str = ""
    _said: float = float("-inf")
    """When, by Trio's clock."""

    def say(self, why: str) -> None:
        """Log it, unless that was done not long ago."""
        now = trio.current_time()
        if now - self._said >= (EVERY if why == self._why else LEAST):
            self._said, self._why = now, why
            log.warning(self._event, why=why)
