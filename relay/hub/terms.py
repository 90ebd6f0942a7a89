"""On what terms a consumer watches: its policy, its pace, its window. Floor 2."""

from __future__ import annotations

from collections import deque
from typing import Literal

from attrs import define, field, frozen

Policy = Literal["latest", "lossless"]

TOLERANCE = 0.1
"""Of a period: how much too early a frame may be and still count as due. Cameras are not clocks."""


@frozen
class Terms:
    """What a subscriber asked for."""

    policy: Policy = "latest"
    max_fps: float | None = None
    window: int | None = None
    """How many frames may be under way unacknowledged; None for no acknowledgements."""


@define(eq=False)
class Pace:
    """Thins frames evenly to a rate."""

    _period: float
    """Seconds."""
    _due: float = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether a frame may go now; the next one is due a period after this one was."""
        if now < self._due - TOLERANCE * self._period:
            return False
        # From when it was due, not from now: the mean rate holds though no frame comes just then.
        on_time = self._due > now - self._period
        self._due = (self._due if on_time else now) + self._period
        return True


@define(eq=False)
class Window:
    """Bounds what is under way end to end, where buffers on the way cannot be seen."""

    size: int
    _unacknowledged: deque[int] = field(factory=deque)

    @property
    def is_open(self) -> bool:
        return len(self._unacknowledged) < self.size

    def sent(self, seq: int) -> None:
        self._unacknowledged.append(seq)

    def acknowledge(self, seq: int) -> None:
        """Take a frame and all before it as arrived; one that is not under way changes nothing."""
        if seq in self._unacknowledged:
            while self._unacknowledged.popleft() != seq:
                pass
