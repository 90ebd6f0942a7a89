"""What a relay says about itself, read with suspicion. Floor 6.

It may be something else that answers, so what is not as expected is `NoRelay`, numbers and lists
are bounded, and every text is taken as hostile by those who show it.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from relay.errors import RelayError

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Words = Annotated[str, Meta(max_length=1000)]
Counts = Annotated[dict[Words, Count], Meta(max_length=1000)]

MOST_STREAMS = 100_000
MOST_BYTES = 32 << 20
"""Of one answer."""

Answer = TypeVar("Answer", bound=msgspec.Struct)


class NoRelay(RelayError):
    """What answers does not speak as a relay does."""


class ToConsumers(msgspec.Struct):
    accepted: Count
    written: Count
    waiting: Count
    dropped: Counts


class Stats(msgspec.Struct):
    """`GET /stats`."""

    connections: Count
    authenticated: Count
    connections_accepted: Count
    frames_accepted: Count
    alerts_stored: Count
    alerts_delivered: Count
    streams: Counts
    frames_to_consumers: ToConsumers
    frame_age: Counts
    """How many frames were written at an age up to each bound and above the one before; the bounds
    are seconds."""
    endings: Counts
    limits_hit: Counts = msgspec.field(default_factory=dict)
    unauthenticated: Count = 0
    profile: Words = "default"


class Ready(msgspec.Struct):
    """`GET /ready`."""

    ready: bool
    draining: bool
    database: Words
    services: Annotated[dict[Words, Words], Meta(max_length=1000)]


class ConsumerFigures(msgspec.Struct):
    written: Count
    waiting: Count
    dropped: Counts


class StreamFigures(msgspec.Struct, rename="camel"):
    stream_id: Words
    status: Words
    epoch: Count
    frames: Count
    consumers: Annotated[list[ConsumerFigures], Meta(max_length=1_000_000)]
    producer: Count | None = None


class Figures(msgspec.Struct):
    """`GET /figures`."""

    streams: Annotated[list[StreamFigures], Meta(max_length=MOST_STREAMS)]


def read(body: bytes, kind: type[Answer], path: str) -> Answer:
    """The answer of a path; `NoRelay` if it is none."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NoRelay(f"what answers at {path} is no relay, or one of another version") from None
