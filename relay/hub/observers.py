"""Connections that asked for the list of streams, and are told of each change to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from attrs import define, field

from relay.hub.peer import HubPeer
from relay.model.access import permissions
from relay.model.access.permissions import VisibleStreams
from relay.protocol.messages import Status

Peers = dict[HubPeer, None]


@define(eq=False)
class Observers:
    """Tells each connection about the streams that it may see, without a look at the others."""

    _visible: dict[HubPeer, VisibleStreams] = field(factory=dict)
    """All observers, with the permissions by which they stand in the following."""
    _by_owner: dict[str, Peers] = field(factory=dict)
    _by_stream: dict[str, Peers] = field(factory=dict)
    _of_many: Peers = field(factory=dict)
    """Those who may see all streams, or all whose ids begin in some way."""

    def __bool__(self) -> bool:
        return bool(self._visible)

    def __contains__(self, peer: HubPeer) -> bool:
        return peer in self._visible

    def add(self, peer: HubPeer) -> None:
        """Add an observer, or note that its permissions have changed."""
        visible = permissions.visible_streams(peer.identity)
        if self._visible.get(peer) == visible:
            return
        self.discard(peer)
        self._visible[peer] = visible
        if is_wide(visible):
            self._of_many[peer] = None
        for index, key in self._places(visible):
            index.setdefault(key, {})[peer] = None

    def discard(self, peer: HubPeer) -> None:
        visible = self._visible.pop(peer, None)
        if visible is None:
            return
        self._of_many.pop(peer, None)
        for index, key in self._places(visible):
            peers = index[key]
            del peers[peer]
            if not peers:
                del index[key]

    def tell(self, status: Status, owner_id: str | None, *, but: Collection[HubPeer]) -> None:
        """Tell a status to the observers that may see the stream, except those in `but`."""
        if owner_id is None or not self._visible:
            return
        none: Peers = {}
        stream_id = status.stream_id
        near = self._by_owner.get(owner_id, none) | self._by_stream.get(stream_id, none)
        for peer in near | self._of_many:
            visible = permissions.may_watch(peer.identity, stream_id, owner_id)
            if visible and peer not in but:
                peer.tell_status(status)

    def _places(self, visible: VisibleStreams) -> Iterator[tuple[dict[str, Peers], str]]:
        if visible.owner_id is not None:
            yield self._by_owner, visible.owner_id
        for stream_id in visible.stream_ids:
            yield self._by_stream, stream_id


def is_wide(visible: VisibleStreams) -> bool:
    """Whether it takes in streams that are not known by their ids."""
    return visible.everything or bool(visible.prefixes)
