"""The relay's clock, estimated from its answers."""

from __future__ import annotations

import math
import time

from attrs import define, field

from relay.protocol.messages import now_ms

MAX_CLOCK_DRIFT = 100.0
"""ms by which our own clock may drift before it counts as set."""


def _ahead() -> float:
    """How far our clock is ahead of one that nobody sets, ms."""
    return now_ms() - time.monotonic() * 1000


@define
class RelayClock:
    """The estimate of the quickest answer, until our own clock is set."""

    _round_trip: float = math.inf
    """Seconds that the quickest answer took."""
    _offset: float = 0.0
    """How far the relay's clock is ahead of ours, ms."""
    _ahead: float = field(factory=_ahead)

    def now(self) -> float:
        """ms since the Unix epoch."""
        return now_ms() + self._offset

    def begin_connection(self) -> None:
        """Forget how quick answers were: they take another path from now on."""
        self._round_trip = math.inf

    def observe(self, stamp: float, took: float) -> None:
        """Note an answer with this time, which came `took` seconds after its request."""
        self.notice_step()
        if took < self._round_trip:
            self._round_trip = took
            self._offset = stamp + took * 500 - now_ms()

    def notice_step(self) -> bool:
        """Whether our clock was set, or slept, since the last call: the next answer counts then."""
        ahead = _ahead()
        if abs(ahead - self._ahead) <= MAX_CLOCK_DRIFT:
            return False
        self._ahead, self._round_trip = ahead, math.inf
        return True
