"""Compares the clock of another machine with ours, by the round trips of probes. No I/O.

A probe leaves at one time of our clock and its answer comes at another; in between the other clock
was read. The difference of the clocks is that to the middle, and wrong by half of the round trip at
most. Clocks may run apart, so an old comparison is worth less than a new one.
"""

from __future__ import annotations

import math

from attrs import define, field, frozen

MAX_DRIFT = 1e-4
"""Seconds per second by which two clocks may run apart; crystals keep to half of that."""
COMPARISON_LIFETIME = 60.0
"""Seconds for which a comparison is kept."""


@frozen
class ClockComparison:
    """The other clock minus ours."""

    at: float
    """By our clock."""
    offset: float
    error: float
    """At `at`."""

    @classmethod
    def of(cls, sent: float, reading: float, received: float) -> ClockComparison:
        half = max(0.0, received - sent) / 2
        return cls(sent + half, reading - (sent + half), half)

    def error_at(self, now: float) -> float:
        return self.error + abs(now - self.at) * MAX_DRIFT


@define(eq=False)
class ClockFilter:
    """The best of the latest comparisons, and the offset that is in use."""

    offset: float = 0.0
    """In use. It is kept as long as it may be right, so that times do not jitter."""
    worst_error: float = 0.0
    """The largest error of the offset in use, since `begin`; `math.inf` before any comparison."""
    _seen: list[ClockComparison] = field(factory=list)
    _in_use: bool = False

    @property
    def compared(self) -> int:
        """How many comparisons there are."""
        return len(self._seen)

    def add(self, comparison: ClockComparison) -> None:
        self._seen.append(comparison)
        since = comparison.at - COMPARISON_LIFETIME
        self._seen = [each for each in self._seen if each.at >= since]

    def begin(self, now: float) -> None:
        """Use the best offset from now on."""
        best = self._best(now)
        self._in_use = best is not None
        if best is not None:
            self.offset = best.offset
        self.worst_error = self.error(now)

    def correct(self, now: float) -> bool:
        """Use the best offset if the one in use is wrong for sure; returns whether it was."""
        if not self._in_use:
            return False
        self.worst_error = max(self.worst_error, self.error(now))
        best = self._best(now)
        if best is None or abs(best.offset - self.offset) <= best.error_at(now):
            return False
        self.offset = best.offset
        return True

    def error(self, now: float) -> float:
        """By how much the offset in use may be wrong, in seconds."""
        best = self._best(now)
        return math.inf if best is None else abs(best.offset - self.offset) + best.error_at(now)

    def _best(self, now: float) -> ClockComparison | None:
        return min(self._seen, key=lambda each: each.error_at(now), default=None)
