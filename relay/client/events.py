"""What a client receives, as values: events, and the answers to requests."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from attrs import field, frozen
from msgspec import Meta

RetryAfter = Annotated[int, Meta(ge=0, le=86_400_000)]
"""ms; a relay never asks for more than a day."""


@frozen
class Frame:
    """One picture of a stream. A gap in `seq` is what this client missed."""

    stream_id: str
    seq: int
    timestamp: int | float
    """The producer's clock, ms since the Unix epoch."""
    received_at: int
    """The relay's clock, ms since the Unix epoch."""
    encoded: str = field(repr=False)
    """The picture in base64, as JSON carries it; empty in MessagePack."""
    keyframe: bool | None = None
    discardable: bool | None = None
    """Of a frame that is no keyframe: whether no other frame builds on it."""
    layer: str | None = None
    """Of a stream with layers: which one this is. Of a smaller picture that the relay made: its
    width."""
    metadata: Mapping[str, Any] | None = None
    epoch: int = 0
    """The epoch of the stream in which `seq` counts; set by a `RelayClient` only."""
    missed: int = 0
    """Frames between the previous one and this one; set by a `RelayClient` only."""
    raw: bytes | None = field(default=None, repr=False)
    """The picture, as MessagePack carries it."""

    @cached_property
    def data(self) -> bytes:
        """The picture, decoded on first use; `ValueError` if the producer did not send base64."""
        if self.raw is not None:
            return self.raw
        return base64.b64decode(self.encoded, validate=True)


@frozen
class Alert:
    """An alert of a stream."""

    alert_id: int
    stream_id: str
    severity: str
    message: str
    timestamp: int | float
    """The sender's clock, ms since the Unix epoch."""
    metadata: Mapping[str, Any] | None = None
    still: str | None = None
    """What becomes of the picture of that moment: `pending`, `kept` or `failed`; None if none was
    to be kept."""
    clip: str | None = None
    replayed: bool = False
    """Whether it comes from storage: missed, or requested. Set by a `RelayClient` only."""


@frozen
class Status:
    """A stream's state; for its producer, also the number of its viewers."""

    stream_id: str
    epoch: int
    status: str
    timestamp: int
    consumers: int | None = None
    layers: tuple[str, ...] | None = None
    """For a producer with layers: the ids of those that somebody needs."""
    standby: float | None = None
    """For a producer that nobody watches: pictures a second that are wanted all the same."""
    metadata: Mapping[str, Any] | None = None
    """The stream's metadata, if it has changed."""


@frozen
class Notice:
    """An announcement about this connection."""

    code: str
    timestamp: int
    expires_at: int | None = None
    retry_after: RetryAfter | None = None
    """A minimum, ms."""
    stream_id: str | None = None
    """The stream of which a keyframe is wanted."""


@frozen
class Problem:
    """An error that is not the reply to a request, such as for a refused frame."""

    code: str
    message: str
    stream_id: str | None = None
    retry_after: RetryAfter | None = None
    """A minimum, ms."""


@frozen
class FramesReceived:
    """Frames of this connection have come; only a `RelayClient` asks to be told, for itself."""

    stream_id: str
    frames: int
    """All of the connection so far."""


Event = Frame | Alert | Status | Notice | Problem | FramesReceived


@frozen
class Authenticated:
    """The session of a connection."""

    user_id: str | None = None
    """None for a service."""
    session_id: str | None = None
    expires_at: int | None = None
    """ms since the Unix epoch."""


@frozen
class Registered:
    """This connection is the producer of the stream."""

    stream_id: str
    layers: tuple[str, ...] | None = None
    """The ids of its layers; None from a relay that knows of none."""


@frozen
class Subscribed:
    """This connection watches the stream."""

    stream_id: str
    epoch: int
    metadata: Mapping[str, Any] | None = None


@frozen
class Unsubscribed:
    """This connection no longer watches the stream."""

    stream_id: str


@frozen
class AlertAccepted:
    """The alert is stored."""

    alert_id: int
    stream_id: str
