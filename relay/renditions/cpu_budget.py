"""Bounds the CPU time that may be spent in any second, and shares it among users."""

from __future__ import annotations

from collections import defaultdict, deque

from attrs import define, field

BUDGET_WINDOW = 1.0
"""Seconds."""
ROUNDING = 1e-9
"""CPU seconds: less than this is only what rounding left."""


@define(eq=False, repr=False)
class CpuBudget:
    """CPU seconds spent within the last second, against so many cores.

    Those who asked within that second have equal shares, so that one of them with many streams
    leaves the others theirs.
    """

    cores: float
    _spent: deque[tuple[float, float, str]] = field(factory=deque)
    """Times, CPU seconds, and for whom."""
    _spent_for: defaultdict[str, float] = field(factory=lambda: defaultdict(float))
    _asked_at: dict[str, float] = field(factory=dict)
    """Who asked when, the latest last."""

    def spend(self, now: float, seconds: float, owner_id: str) -> None:
        """Note CPU seconds that were spent up to now."""
        self._spent.append((now, seconds, owner_id))
        self._spent_for[owner_id] += seconds

    def has_room(self, now: float, owner_id: str) -> bool:
        """Whether less has been spent, in all and for this owner, than the budget allows. The next
        piece of work may exceed it, and then delays those behind it."""
        self._asked_at.pop(owner_id, None)
        self._asked_at[owner_id] = now
        self._forget_before(now - BUDGET_WINDOW)
        allowed = self.cores * BUDGET_WINDOW
        if sum(self._spent_for.values()) >= allowed:
            return False
        return self._spent_for.get(owner_id, 0.0) < allowed / len(self._asked_at)

    def _forget_before(self, start: float) -> None:
        while self._spent and self._spent[0][0] <= start:
            _, seconds, owner_id = self._spent.popleft()
            self._spent_for[owner_id] -= seconds
            if self._spent_for[owner_id] < ROUNDING:
                del self._spent_for[owner_id]
        while self._asked_at[first := next(iter(self._asked_at))] <= start:
            del self._asked_at[first]
