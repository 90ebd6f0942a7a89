"""What became of the frames: accepted = written + dropped by reason + waiting. Floor 2.

`waiting` is counted from the queues and never by subtraction, so that the sum can be checked.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from attrs import define, field


class Drop(StrEnum):
    """Why a consumer did not get a frame."""

    SUPERSEDED = "superseded"
    """A newer frame took its place."""
    THINNED = "thinned"
    """The consumer asked for fewer."""
    UNDECODABLE = "undecodable"
    """It builds on a frame that was dropped."""
    UNENCODABLE = "unencodable"
    """Its data cannot be put into the consumer's encoding."""
    LEFT = "left"
    """The consumer left, or was too slow, while it waited."""


@define(eq=False)
class Ledger:
    """The frames of one consumer, or of many."""

    accepted: int = 0
    written: int = 0
    dropped: Counter[Drop] = field(factory=Counter)

    def add(self, other: Ledger) -> None:
        self.accepted += other.accepted
        self.written += other.written
        self.dropped += other.dropped
