"""The connections at either end of a stream, as the hub sees them. Floor 2."""

from __future__ import annotations

from typing import Protocol

from relay.protocol.messages import ServerMessage


class Peer(Protocol):
    """A connection that can be told something."""

    def tell(self, message: ServerMessage) -> object:
        """Send a message, ahead of video; never waits."""


class Producer(Peer, Protocol):
    """The connection that produces a stream."""

    wants_alerts: bool

    @property
    def accepted(self) -> int:
        """Grows with each connection that the relay accepts."""

    def superseded(self) -> object:
        """A newer connection produces the stream now: end."""
