"""What the hub has to do with other nodes: streams whose producer is connected elsewhere.

A stream has one origin, the node that its producer is connected to. Any other node that has viewers
of it is an edge: there the stream gets its frames over a link, from something that stands for the
producer (`Producer`), and all the rest is as if the producer were here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from relay.model.cluster import LiveStream
from relay.protocol.messages import Layer, StreamStatus

if TYPE_CHECKING:  # a stream tells it of itself
    from relay.hub.frames.frame import Frame
    from relay.hub.peer import HubPeer
    from relay.hub.stream import Stream
    from relay.model.access.identity import Identity


class RemoteStreams(Protocol):
    """The other nodes, as the hub sees them. Nothing here waits."""

    def wanted(self, stream: Stream) -> object:
        """Somebody here may see a stream that is live on another node, and gets no frames yet."""

    def changed(self, stream: Stream) -> object:
        """A stream that is produced here has another status or other metadata, or is over."""

    def reconsider(self, peer: HubPeer, before: Identity) -> object:
        """The permissions of a peer that observes streams have changed."""

    def is_news(self, stream: Stream, /) -> bool:
        """Whether those who observe streams have yet to be told of the status of this one."""


@frozen
class LocalOnly:
    """There are no other nodes."""

    def wanted(self, stream: Stream) -> None:
        pass

    def changed(self, stream: Stream) -> None:
        pass

    def reconsider(self, peer: HubPeer, before: Identity) -> None:
        pass

    def is_news(self, _stream: Stream, /) -> bool:
        return True


@frozen
class Epoch:
    """The epoch in which a producer begins, or goes on."""

    number: int
    """As in `status`."""
    term: int = 0
    """Of the origin; see `LiveStream`."""
    seq: int = 0
    """Of the last picture that another origin has accepted."""
    status: StreamStatus = StreamStatus.ONLINE
    keyframe: Frame | None = None
    """The last frame there that stands for itself, for newcomers."""


@frozen
class RemoteState:
    """A live stream of another node, as that or the directory describes it."""

    node_id: str
    term: int
    epoch: int
    owner_id: str
    status: StreamStatus
    metadata: dict[str, Any] | None
    layers: Sequence[Layer] | None = None

    @classmethod
    def of(cls, row: LiveStream) -> RemoteState:
        """As the directory describes it, which does not know layers."""
        return cls(row.node_id, row.term, row.epoch, row.owner_id, row.status, row.metadata)


@frozen
class Surrender:
    """What an origin knows of a stream that another node takes over."""

    epoch: int
    seq: int
    status: StreamStatus
    keyframe: Frame | None
