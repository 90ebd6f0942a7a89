"""Searches for the largest load that keeps the checks: it grows, then halves the gap. No I/O."""

from __future__ import annotations

from collections import Counter

from attrs import define, field, frozen

GROWTH = 2.0


@frozen(kw_only=True)
class SearchOptions:
    """From where to where, how closely and how long."""

    start: float
    least: float
    most: float
    resolution: float = 0.1
    """The gap that may stay between what keeps and what fails, as a part of the latter."""
    steps: int = 12
    """Runs of the search, without the repetitions at its end."""
    repeats: int = 3
    """Runs at the limit that must keep the checks."""
    is_whole: bool = True
    aim: float | None = None
    """A load that is tried itself, if in the end the limit may be on either side of it."""


@define(eq=False)
class LimitSearch:
    """Says which load to try next, and what is known of the limit so far.

    A load that failed once has failed, whatever it did at other times: a limit is what keeps.
    """

    options: SearchOptions
    _kept: Counter[float] = field(factory=Counter)
    _failed: set[float] = field(factory=set)
    _tried: set[float] = field(factory=set)
    """What `next` said, other than to repeat a run."""

    @property
    def limit(self) -> float | None:
        """The largest load that has kept the checks so far; None if there is none."""
        first = min(self._failed, default=float("inf"))
        return max((level for level in self._kept if level < first), default=None)

    @property
    def above(self) -> float | None:
        """The smallest load that has failed; None if there is none."""
        return min(self._failed, default=None)

    @property
    def kept_at_limit(self) -> int:
        return self._kept[self.limit] if self.limit is not None else 0

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to be tried between the limit and what failed."""
        return self._between() is None

    def next(self) -> float | None:
        """The load to try; None when the search is over."""
        level = self._between() if len(self._tried) < self.options.steps else None
        if level is not None:
            self._tried.add(level)
            return level
        return self.limit if self.kept_at_limit < self.options.repeats else None

    def note(self, level: float, *, kept: bool) -> None:
        """Note how a run at this load ended; it may be a little off what `next` said."""
        if kept:
            self._kept[level] += 1
        else:
            self._failed.add(level)

    def _between(self) -> float | None:
        """A load that says more about the limit and was not tried yet."""
        level = self._wanted()
        return None if level in self._tried else level

    def _wanted(self) -> float | None:
        options, limit, above = self.options, self.limit, self.above
        if limit is None and above is None:
            return options.start
        if above is None:
            assert limit is not None
            return None if limit >= options.most else min(options.most, self._even(limit * GROWTH))
        if limit is None:
            return (
                None if above <= options.least else max(options.least, self._even(above / GROWTH))
            )
        return self._middle(limit, above)

    def _middle(self, limit: float, above: float) -> float | None:
        """A load between what kept and what failed, if they are not near enough."""
        options = self.options
        if above - limit > options.resolution * above:
            middle = self._even((limit + above) / 2)
            if limit < middle < above:
                return middle
        if options.aim is not None and limit < options.aim < above:
            return options.aim
        return None

    def _even(self, level: float) -> float:
        return float(int(level)) if self.options.is_whole else round(level, 1)
