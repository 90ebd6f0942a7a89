"""Counters of the whole relay, read by `/stats` and `/metrics`. Floor 0.

Totals only: nothing here names a stream, a user or a connection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from enum import StrEnum
from itertools import accumulate
from math import inf
from typing import Any

from attrs import asdict, define, field

from relay.closing import Ending

AGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds."""
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Of batches."""


class Limit(StrEnum):
    """What somebody ran into."""

    NETWORK = "network"
    ORIGIN = "origin"
    NEW_CONNECTIONS = "new_connections"
    CONNECTIONS = "connections"
    CONNECTIONS_OF_ADDRESS = "connections_of_address"
    CONNECTIONS_OF_USER = "connections_of_user"
    UNAUTHENTICATED = "unauthenticated"
    FAILED_AUTHS = "failed_auths"
    MESSAGES = "messages"
    FRAMES = "frames"
    BYTES = "bytes"
    ALERTS = "alerts"
    REGISTRATIONS = "registrations"
    RENEWALS = "renewals"
    STREAMS_OF_USER = "streams_of_user"
    SUBSCRIPTIONS = "subscriptions"


@define(eq=False)
class Histogram:
    """How often values were at most so large."""

    bounds: tuple[float, ...] = AGES
    counts: list[int] = field(init=False)
    """For each bound the values up to it and above the one before, and those above all."""
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound, infinity at last, with how many values were at most that."""
        return list(zip((*self.bounds, inf), accumulate(self.counts), strict=True))

    def summary(self) -> dict[str, int]:
        """The counts by their bounds, as text."""
        names = [f"{bound:g}" for bound in self.bounds] + ["inf"]
        return dict(zip(names, self.counts, strict=True))


@define(eq=False)
class Metrics:
    """Totals since the start."""

    connections: int = 0
    """WebSocket connections that are open now."""
    connections_accepted: int = 0
    authenticated: int = 0
    """Open connections that are authenticated."""
    verifications: int = 0
    verification_queries: int = 0
    frames_accepted: int = 0
    frame_age: Histogram = field(factory=Histogram)
    """Seconds from accepting a frame to writing it to a consumer."""
    alerts_stored: int = 0
    alerts_delivered: int = 0
    alerts_removed: int = 0
    """Too old, or too many."""
    webhook_alerts: Counter[str] = field(factory=Counter)
    """By what became of an attempt."""
    limits_hit: Counter[Limit] = field(factory=Counter)
    endings: Counter[Ending] = field(factory=Counter)
    auth_attempts: Counter[str] = field(factory=Counter)
    """By outcome."""
    verification_time: Histogram = field(factory=Histogram)
    """Seconds from asking whose token it is to the answer."""
    verification_batch: Histogram = field(factory=lambda: Histogram(SIZES))
    """Tokens that were looked up together."""

    def totals(self) -> dict[str, Any]:
        """For `/stats`: the plain numbers, the ages of frames, endings and limits by name."""
        numbers = asdict(self, filter=lambda _, value: isinstance(value, int))
        endings = {ending.label: number for ending, number in self.endings.items()}
        limits_hit = {limit.value: self.limits_hit[limit] for limit in Limit}
        return numbers | {
            "endings": endings,
            "limits_hit": limits_hit,
            "frame_age": self.frame_age.summary(),
        }
