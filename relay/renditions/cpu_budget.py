"""Bounds the CPU time that may be spent in any second."""

from __future__ import annotations

from collections import deque

from attrs import define, field

BUDGET_WINDOW = 1.0
"""Seconds."""


@define(eq=False)
class CpuBudget:
    """CPU seconds spent within the last second, against so many cores."""

    cores: float
    _spent: deque[tuple[float, float]] = field(factory=deque)
    """Times, and CPU seconds."""
    _total: float = 0.0

    def spend(self, now: float, seconds: float) -> None:
        """Note CPU seconds that were spent up to now."""
        self._spent.append((now, seconds))
        self._total += seconds

    def has_room(self, now: float) -> bool:
        """Whether less has been spent than the budget allows. The next piece of work may exceed
        it, and then delays those behind it."""
        while self._spent and self._spent[0][0] <= now - BUDGET_WINDOW:
            self._total -= self._spent.popleft()[1]
        if not self._spent:
            self._total = 0.0  # instead of what rounding left
        return self._total < self.cores * BUDGET_WINDOW
