"""The relay's clock, as its answers show it. Floor 2."""

from __future__ import annotations

import math
import time

from attrs import define, field

from relay.protocol.messages import now_ms

STEP = 100.0
"""ms by which our own clock may wander off before it counts as set."""


def _ahead() -> float:
    """How far our clock is ahead of one that nobody sets, ms."""
    return now_ms() - time.monotonic() * 1000


@define
class RelayClock:
    """Of several answers the quickest says it best, until our own clock is set."""

    _round_trip: float = math.inf
    """Seconds that the quickest answer took."""
    _offset: float = 0.0
    """How far it is ahead of ours, ms."""
    _ahead: float = field(factory=_ahead)

    def now(self) -> float:
        """ms since the Unix epoch."""
        return now_ms() + self._offset

    def begin_connection(self) -> None:
        """Answers come by another way from now on."""
        self._round_trip = math.inf

    def take(self, stamp: float, took: float) -> None:
        """An answer of this time came `took` seconds after it was asked for."""
        self.notice_step()
        if took < self._round_trip:
            self._round_trip = took
            self._offset = stamp + took * 500 - now_ms()

    def notice_step(self) -> bool:
        """Whether our clock was set, or slept, since the last look: the next answer counts then."""
        ahead = _ahead()
        if abs(ahead - self._ahead) <= STEP:
            return False
        self._ahead, self._round_trip = ahead, math.inf
        return True
