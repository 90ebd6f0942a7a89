"""Flow control of a consumer: its policy, its frame rate, its window."""

from __future__ import annotations

from collections import deque
from typing import Literal

from attrs import define, field, frozen

Policy = Literal["latest", "lossless"]

TOLERANCE = 0.1
"""The part of a period by which a frame may be early and still be due. Cameras are not clocks."""

MAX_PERIOD = 1e9
"""Seconds between two frames of the slowest pace: about 30 years."""


@frozen
class FlowControlOptions:
    """Flow control that a subscriber asked for."""

    policy: Policy = "latest"
    max_fps: float | None = None
    window: int | None = None
    """Frames that may be in flight without an `ack`; None if there are no acknowledgements."""
    max_width: int | None = None
    """Pixels of the widest layer that it has a use for."""
    layer: str | None = None
    """The only layer that it wants."""
    adapts: bool = True
    """Whether it gets a smaller layer where its link does not carry the largest."""

    @property
    def period(self) -> float | None:
        """The seconds between two frames, however small the rate is; None for no pace."""
        return None if self.max_fps is None else 1 / max(self.max_fps, 1 / MAX_PERIOD)


@define(eq=False)
class Pace:
    """Thins frames evenly to a rate."""

    _period: float
    """Seconds."""
    _due: float = float("-inf")

    def allows(self, now: float) -> bool:
        """Whether a frame would be due now."""
        return now >= self._due - TOLERANCE * self._period

    def is_due(self, now: float) -> bool:
        """Whether a frame is due now; the next one is due a period after this one was."""
        if not self.allows(now):
            return False
        # From when it was due, not from now: the mean rate holds though no frame comes just then.
        on_time = self._due > now - self._period
        self._due = (self._due if on_time else now) + self._period
        return True

    def skip(self) -> None:
        """Note that the frame that was due last does not go out: then the next one is due."""
        self._due -= self._period


@define(eq=False)
class Window:
    """Bounds the frames in flight end to end, where buffers along the path cannot be seen."""

    size: int
    _unacknowledged: deque[int] = field(factory=deque)

    @property
    def is_open(self) -> bool:
        return len(self._unacknowledged) < self.size

    def sent(self, seq: int) -> None:
        self._unacknowledged.append(seq)

    def forget(self, seq: int) -> None:
        """Note that a frame will not arrive whole, so that nobody acknowledges it."""
        if seq in self._unacknowledged:
            self._unacknowledged.remove(seq)

    def acknowledge(self, seq: int) -> None:
        """Note that a frame and all before it have arrived; ignores one that is not in flight."""
        if seq in self._unacknowledged:
            while self._unacknowledged.popleft() != seq:
                pass
