"""How long viewers watch streams, as a count that is complete whenever it is read. No I/O."""

from __future__ import annotations

from collections import Counter

from attrs import define

WATCHED = "watched_ms"
"""Name of the count: milliseconds, once for each stream that a viewer watches."""


@define(eq=False)
class WatchTime:
    """The viewers of one group in one process."""

    end: float
    """When phones stop sending, in seconds of the run like all moments here."""
    watched: int = 0
    """Streams that are watched now, once for each viewer."""
    _counted_until: float = 0.0

    def change(self, counts: Counter[str], now: float, change: int) -> None:
        """So many more streams are watched from now on."""
        self.count(counts, now)
        self.watched += change

    def count(self, counts: Counter[str], now: float) -> None:
        """Add the time since the last call."""
        now = max(self._counted_until, min(now, self.end))
        if self.watched:
            counts[WATCHED] += round(1000 * self.watched * (now - self._counted_until))
        self._counted_until = now
