"""The connections at either end of a stream, as the hub sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from relay.model.access.identity import Identity
from relay.protocol.codec import Codec
from relay.protocol.messages import AlertEvent, ServerMessage, Status

if TYPE_CHECKING:  # it tells them of itself
    from relay.hub.stream import Stream


class HubPeer(Protocol):
    """A connection that messages can be sent to."""

    @property
    def codec(self) -> Codec:
        """The encoding that it speaks."""

    @property
    def identity(self) -> Identity:
        """The identity behind it, whose permissions can change at any time."""

    @property
    def number(self) -> int:
        """The number of the connection, which grows with each one accepted."""

    def tell(self, message: ServerMessage) -> object:
        """Send a message, ahead of video; never waits."""

    def tell_status(self, status: Status) -> object:
        """Send a status as `tell` does; an earlier one of the stream that still waits is not
        sent."""

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> object:
        """Send an alert of a stream of this owner's, or hold it back until a replay of earlier ones
        has ended."""


class ConsumingPeer(HubPeer, Protocol):
    """A connection that consumes streams."""

    @property
    def takes_parts(self) -> bool:
        """Whether it takes a long message as several `part` messages."""

    def too_slow(self) -> object:
        """End the connection: more waits for it than may."""

    @property
    def unsent_frame(self) -> object | None:
        """The large frame of which it has received only a part, if any."""

    def cut_off(self) -> object:
        """End the connection at once, in the middle of that frame."""


class EdgePeer(ConsumingPeer, Protocol):
    """Another node that carries streams of this one."""

    @property
    def node_id(self) -> str:
        """The id of that node."""

    def tell_stream(self, stream: Stream) -> object:
        """Describe a stream as it is now."""

    def tell_moved(self, stream_id: str, term: int, node_id: str | None) -> object:
        """Say that a stream is not here any more, but on another node, or on an unknown one."""

    def tell_lost(self, stream_id: str) -> object:
        """Say that a frame was left out of a stream of which none must be missed."""


class Producer(HubPeer, Protocol):
    """The connection that produces a stream."""

    wants_alerts: bool

    def superseded(self) -> object:
        """End the connection: a newer one produces the stream."""

    def lost_stream(self) -> object:
        """End the connection: the stream that it produces has another owner."""


class CarryingProducer(Producer, Protocol):
    """What stands for the producer of a stream that is on another node."""

    received: int
    """Frames that came from there."""
    lost: int
    """Frames that were accepted there meanwhile, and did not come."""

    @property
    def path(self) -> Sequence[str]:
        """The nodes that they come through, the one with the producer first."""
