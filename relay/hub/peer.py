"""The connections at either end of a stream, as the hub sees them. Floor 2."""

from __future__ import annotations

from typing import Protocol

from relay.model import Identity
from relay.protocol.codec import Codec
from relay.protocol.messages import AlertEvent, ServerMessage


class Peer(Protocol):
    """A connection that can be told something."""

    @property
    def codec(self) -> Codec:
        """The encoding that it speaks."""

    @property
    def identity(self) -> Identity:
        """Who is behind it; what they may do can change at any time."""

    @property
    def accepted(self) -> int:
        """Grows with each connection that the relay accepts."""

    def tell(self, message: ServerMessage) -> object:
        """Send a message, ahead of video; never waits."""

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> object:
        """Send an alert of a stream of this owner's, or hold it back until a replay of earlier ones
        has ended."""


class ConsumingPeer(Peer, Protocol):
    """A connection that consumes streams."""

    def too_slow(self) -> object:
        """It let more wait than it may: end."""


class Producer(Peer, Protocol):
    """The connection that produces a stream."""

    wants_alerts: bool

    def superseded(self) -> object:
        """A newer connection produces the stream now: end."""
