"""Caps on what a process may do to targets, which whoever runs it has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from relay.errors import RelayError

CATCH_UP_SECONDS = 2.0
"""Seconds whose messages may come at once: a process that was late catches up."""


class LimitReached(RelayError):
    """A run wants more than this process may do."""


@define(eq=False)
class Allowance:
    """Counts connections and messages, and stops a run that has too many. Nothing is delayed, as
    that would be another load than the scenario's."""

    connections: int
    """At once."""
    rate: float
    """Frames, alerts, pings and attempts to connect per second."""
    _open: int = 0
    _spare: float = field(init=False)
    _at: float = field(init=False)
    """When the spare messages were counted, by Trio's clock."""

    def __attrs_post_init__(self) -> None:
        self._spare, self._at = self.rate * CATCH_UP_SECONDS, trio.current_time()

    def spend(self, messages: int = 1) -> None:
        """Count messages; `LimitReached`."""
        now = trio.current_time()
        refilled = self._spare + (now - self._at) * self.rate
        self._spare, self._at = min(refilled, self.rate * CATCH_UP_SECONDS), now
        if self._spare < messages:
            raise LimitReached(f"more than {self.rate:.6g} messages a second, its --max-rate")
        self._spare -= messages

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Count a connection while the block runs; `LimitReached`."""
        self.spend()
        if self._open >= self.connections:
            raise LimitReached(f"more than {self.connections} connections, its --max-connections")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
