"""The outcome of frames: accepted = written + dropped by reason + waiting.

`waiting` counts what enters and leaves the queues and is never a difference of the others, so that
the sum can be checked.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum

from attrs import define, field

from relay.protocol.messages import StreamStatus


class Drop(StrEnum):
    """Why a consumer did not get a frame."""

    SUPERSEDED = "superseded"
    """A newer frame took its place."""
    THINNED = "thinned"
    """The consumer asked for fewer."""
    UNDECODABLE = "undecodable"
    """It builds on a frame that was dropped."""
    NO_LAYER = "no_layer"
    """The picture did not come in the layer that fits its link."""
    UNENCODABLE = "unencodable"
    """Its data cannot be put into the consumer's encoding."""
    NO_ROOM = "no_room"
    """Too many bytes of frames were kept."""
    LEFT = "left"
    """The consumer left, or was too slow, while it waited."""


@define(eq=False)
class Ledger:
    """The frames of one consumer, or of all."""

    accepted: int = 0
    written: int = 0
    dropped: Counter[Drop] = field(factory=Counter)


@define(eq=False)
class Totals:
    """Running sums over all streams and consumers, so that nobody has to walk them."""

    frames: Ledger = field(factory=Ledger)
    waiting: int = 0
    """Frames in the queues of consumers."""
    streams: Counter[StreamStatus] = field(factory=Counter)
    """The live streams by status."""
    consumers: int = 0
    """Subscriptions, whether or not there is such a stream."""
