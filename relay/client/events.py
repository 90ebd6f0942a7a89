"""What a client receives, as values: events by themselves, replies to a request. Floor 2."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from attrs import field, frozen
from msgspec import Meta

Pause = Annotated[int, Meta(ge=0, le=86_400_000)]
"""ms; no relay asks for more than a day."""


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
    """Base64, as it travelled; empty where bytes did."""
    keyframe: bool | None = None
    metadata: Mapping[str, Any] | None = None
    epoch: int = 0
    """Which life of the stream `seq` counts in; only a `RelayClient` tells."""
    missed: int = 0
    """Frames between the one before and this one; only a `RelayClient` tells."""
    raw: bytes | None = field(default=None, repr=False)
    """As it travelled in MessagePack."""

    @cached_property
    def data(self) -> bytes:
        """Decoded when first asked for; `ValueError` if the producer sent no base64."""
        if self.raw is not None:
            return self.raw
        return base64.b64decode(self.encoded, validate=True)


@frozen
class Alert:
    alert_id: int
    stream_id: str
    severity: str
    message: str
    timestamp: int | float
    """The sender's clock, ms since the Unix epoch."""
    metadata: Mapping[str, Any] | None = None
    replayed: bool = False
    """Whether it was missed or asked for, and comes from the store; only a `RelayClient` tells."""


@frozen
class Status:
    """A stream's state; to its producer also how many watch."""

    stream_id: str
    epoch: int
    status: str
    timestamp: int
    consumers: int | None = None
    metadata: Mapping[str, Any] | None = None
    """Of the stream, if it is another one than before."""


@frozen
class Notice:
    """Something will happen to this connection."""

    code: str
    timestamp: int
    expires_at: int | None = None
    retry_after: Pause | None = None
    """A minimum, ms."""


@frozen
class Problem:
    """An error that answers no request, such as that of a frame that was refused."""

    code: str
    message: str
    stream_id: str | None = None
    retry_after: Pause | None = None
    """A minimum, ms."""


Event = Frame | Alert | Status | Notice | Problem


@frozen
class Authenticated:
    user_id: str | None = None
    """None for a service."""
    session_id: str | None = None
    expires_at: int | None = None


@frozen
class Registered:
    stream_id: str


@frozen
class Subscribed:
    stream_id: str
    epoch: int
    metadata: Mapping[str, Any] | None = None


@frozen
class Unsubscribed:
    stream_id: str


@frozen
class AlertAccepted:
    alert_id: int
    stream_id: str
