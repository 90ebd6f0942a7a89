"""Limits how often a repeated warning is logged."""

from __future__ import annotations

import structlog
import trio
from attrs import define

REPEAT_INTERVAL = 60.0
"""Seconds between two warnings for the same reason."""
MIN_INTERVAL = 1.0
"""Seconds between any two warnings, by default."""

log = structlog.get_logger()


@define(eq=False, repr=False)
class ThrottledWarning:
    """A warning that may come often, with the reason of the moment."""

    _event: str
    _why: str = ""
    _warned_at: float = float("-inf")
    """By Trio's clock."""
    _min_interval: float = MIN_INTERVAL
    """Seconds between any two, whatever the reasons."""

    def warn(self, why: str) -> None:
        """Log the warning, unless it was logged not long ago."""
        now = trio.current_time()
        if now - self._warned_at >= (REPEAT_INTERVAL if why == self._why else self._min_interval):
            self._warned_at, self._why = now, why
            log.warning(self._event, why=why)
