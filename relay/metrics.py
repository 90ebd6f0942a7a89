"""Counters of the whole relay, read by `/stats`. Floor 0.

Totals only: nothing here names a stream, a user or a connection.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import asdict, define, field

from relay.closing import Ending


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
    frames_written: int = 0
    frames_dropped: int = 0
    """Frames that a consumer skipped to get a newer one, or left behind at its end."""
    alerts_stored: int = 0
    alerts_delivered: int = 0
    endings: Counter[Ending] = field(factory=Counter)

    def totals(self) -> dict[str, Any]:
        """All of them as plain values, endings by their label."""
        endings = {ending.label: number for ending, number in self.endings.items()}
        return asdict(self) | {"endings": endings}
