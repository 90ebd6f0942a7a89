"""Chooses the worker for a connection. No I/O.

A stream costs least where its phone and its viewers are in one process, so a connection that names
its stream goes where that stream is already, as long as this worker has not much more than its
share. A new stream goes to the worker with the fewest connections, as does a connection that names
none. So a worker that ends moves its own connections and no others. Nothing depends on this choice
but what it costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from attrs import define, field

MAX_LOAD_FACTOR = 1.25
"""A worker takes more connections for a stream that it has until it has this many times the mean of
all workers."""
LOAD_SLACK = 16
"""Connections above the mean that are no imbalance, however low the mean is."""


@define(eq=False)
class Placement:
    """The connections of each worker, and of each stream on each worker."""

    share: int | None = None
    """The connections that one worker may have; None without a limit."""
    loads: Counter[int] = field(factory=Counter)
    """Connections by worker."""
    _streams: dict[str, Counter[int]] = field(factory=dict)
    """Connections by worker for each stream that one of them has named."""

    def choose(self, hint: str | None, workers: Collection[int]) -> int:
        """The worker, of those that can take a connection now, for one that names this stream."""
        fewest = min(workers, key=lambda worker: (self.loads[worker], worker))
        here = None if hint is None else self._streams.get(hint)
        if here is None:
            return fewest
        bound = self._bound(workers)
        with_room = [each for each in workers if here[each] and self.loads[each] < bound]
        if not with_room:
            return fewest
        return max(with_room, key=lambda worker: (here[worker], -worker))

    def may_get(self, worker: int, workers: Collection[int]) -> bool:
        """Whether a worker, of those that can take a connection now, may get one more for a stream
        that it has."""
        return worker in workers and self.loads[worker] < self._bound(workers)

    def add(self, hint: str | None, worker: int) -> None:
        """Count a connection that was given to a worker."""
        self.loads[worker] += 1
        if hint is not None:
            self._streams.setdefault(hint, Counter())[worker] += 1

    def remove(self, hint: str | None, worker: int) -> None:
        """Count a connection no longer."""
        _count_down(self.loads, worker)
        if hint is not None:
            here = self._streams[hint]
            _count_down(here, worker)
            if not here:
                del self._streams[hint]

    def _bound(self, workers: Collection[int]) -> float:
        mean = sum(self.loads[each] for each in workers) / len(workers)
        bound = max(MAX_LOAD_FACTOR * mean, mean + LOAD_SLACK)
        return bound if self.share is None else min(bound, self.share)


def _count_down(counts: Counter[int], worker: int) -> None:
    counts[worker] -= 1
    if not counts[worker]:
        del counts[worker]
