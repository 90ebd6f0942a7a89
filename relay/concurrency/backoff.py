"""Exponential back-off."""

from __future__ import annotations

from attrs import define

_MAX_EXPONENT = 30
"""Keeps the power of two finite where failures go on for months."""


def pause_after(failures: int, *, first: float, longest: float) -> float:
    """Return the pause behind so many earlier failures: `first`, doubled for each, up to a bound.

    Seconds, or whatever the bounds are given in.
    """
    return min(first * 2.0 ** min(failures, _MAX_EXPONENT), longest)


@define(eq=False, repr=False)
class Backoff:
    """The pauses between attempts, each twice as long as the one before, up to a bound."""

    first: float
    """Seconds."""
    longest: float
    _failures: int = 0

    def next(self) -> float:
        """Count a failure; returns the seconds to wait."""
        pause = pause_after(self._failures, first=self.first, longest=self.longest)
        self._failures += 1
        return pause

    def reset(self) -> None:
        """Begin again with the first pause."""
        self._failures = 0
