"""Keeps the hub in step with what other nodes have.

The directory says which node has a stream; the link to that node, once there is one, says it
sooner. Both may come late, twice or out of order: the epoch and the term tell which is newer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import trio
from attrs import define, evolve, field, frozen

from relay.hub.hub import Hub
from relay.hub.peer import EdgePeer, HubPeer, Producer
from relay.hub.remote import Epoch, RemoteState, Surrender
from relay.hub.stream import Stream
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.protocol.messages import Status, StreamStatus

SURRENDER_MEMORY = 5.0
"""Seconds for which another node may ask for a stream that was left to it."""


@frozen
class _Left:
    """A stream that was left to another node, which has not asked for it yet."""

    term: int
    to: str
    known: Surrender
    at: float
    """By Trio's clock."""


@define(eq=False)
class ClusterStreams:
    """The streams of other nodes, as the hub of this one has them."""

    _hub: Hub
    _node_id: str
    _announced: dict[str, RemoteState] = field(factory=dict)
    """Live streams that observers were told of, as they were told."""
    _left: dict[str, _Left] = field(factory=dict)
    """By stream: the directory may say who has it before that node asks for it."""

    def learn(self, stream_id: str, state: RemoteState) -> None:
        """Take what the directory says of a live stream."""
        stream = self._hub.find(stream_id)
        if stream is None:
            self._announce(stream_id, state)
            return
        self.note_listed(stream_id, state)
        if state.node_id == self._node_id:
            return
        if stream.live and not stream.is_remote:
            if state.term > stream.term:
                self._leave(stream, state)
        elif not self._is_stale(stream, state):
            self._follow(stream, state)
            if stream.producer is None and stream.fanout.audience:
                self._hub.remote.wanted(stream)  # again, where that node had it not yet

    def open(self, stream_id: str, state: RemoteState) -> None:
        """Have a live stream of another node here, for somebody who is about to subscribe."""
        stream = self._hub.open(stream_id)
        if stream.live or state.node_id == self._node_id or self._is_stale(stream, state):
            self._hub.forget_unused(stream)
        else:
            self._hub.start_remote(stream, state)

    @property
    def announced(self) -> Collection[str]:
        """The live streams that observers were told of."""
        return self._announced

    def note_listed(self, stream_id: str, state: RemoteState) -> None:
        """Note that an observer may know of a live stream, and is to be told of its end."""
        if self._hub.is_observed and state.node_id != self._node_id:
            self._announced[stream_id] = evolve(state, metadata=None)

    def is_news(self, stream: Stream) -> bool:
        """Note that observers are about to be told of the status of a stream that is watched or
        produced here; whether they have not been already, as before it was."""
        before = self._announced.pop(stream.stream_id, None)
        if not stream.live or not self._hub.is_observed:
            return True
        assert stream.owner_id is not None
        self._announced[stream.stream_id] = RemoteState(
            *(stream.origin or self._node_id, stream.term, stream.epoch),
            *(stream.owner_id, stream.status, None),
        )
        return before is None or (before.epoch, before.status) != (stream.epoch, stream.status)

    def reconsider(self, peer: HubPeer, before: Identity) -> None:
        """Tell an observer of those streams that it may see no more."""
        for stream_id, state in self._announced.items():
            if self._hub.find(stream_id) is None and (
                permissions.may_watch(before, stream_id, state.owner_id)
                and not permissions.may_watch(peer.identity, stream_id, state.owner_id)
            ):
                offline = Status(stream_id=stream_id, epoch=0, status=StreamStatus.OFFLINE)
                peer.tell_status(offline)

    def reveal(self, peer: HubPeer, stream_id: str, state: RemoteState) -> None:
        """Tell an observer of a stream that it may see now, unless the hub has done so."""
        if self._hub.find(stream_id) is None and self._hub.observes(peer):
            self.note_listed(stream_id, state)
            status = Status(stream_id=stream_id, epoch=state.epoch, status=state.status)
            peer.tell_status(status)

    def learn_end(self, stream_id: str) -> None:
        """Take it that the directory has no such stream any more."""
        announced = self._announced.pop(stream_id, None)
        stream = self._hub.find(stream_id)
        if stream is not None:
            # As long as there is a link, that says when a stream ends.
            if stream.live and stream.is_remote and stream.producer is None:
                self._end(stream)
        elif announced is not None:
            offline = Status(stream_id=stream_id, epoch=0, status=StreamStatus.OFFLINE)
            self._hub.tell_observers(offline, announced.owner_id)

    def attach(self, stream: Stream, producer: Producer, state: RemoteState) -> bool:
        """Take what the link to the origin says of a stream, and get frames from there; whether
        that is of use."""
        if self._hub.find(stream.stream_id) is not stream:
            return False  # nobody wanted it any more
        if (stream.live and not stream.is_remote) or self._is_stale(stream, state):
            return False
        if state.status is StreamStatus.OFFLINE:
            self._announced.pop(stream.stream_id, None)
            if stream.live:
                self._end(stream)
            return False
        former = stream.producer
        if former is not None and former is not producer:
            self._send_edges_away(stream, None)
            stream.producer = None
            former.superseded()
        if self._hub.find(stream.stream_id) is stream:
            self._follow(stream, state, producer)
        if self._hub.find(stream.stream_id) is not stream:
            return False  # only other nodes wanted it, and they look for it elsewhere
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        if stream.producer is not producer or state.layers != stream.registered_layers:
            stream.attach(producer, state.layers)
        return True

    def lose(self, stream: Stream, producer: Producer) -> None:
        """Keep a stream for a while whose link is gone. Those who get it from here look for it
        themselves: so no two nodes ever wait for each other."""
        if stream.producer is producer:
            self._send_edges_away(stream, None)
        self._hub.release(stream, producer)

    def await_link(self, stream: Stream) -> None:
        """Keep a stream for no longer than that while its node cannot be reached."""
        if stream.grace is None:
            self._hub.release(stream, None)

    def detach(self, stream: Stream, producer: Producer) -> None:
        """Get no more frames: nobody wants them."""
        if stream.producer is producer:
            stream.producer = None
            stream.forget_carried()

    def begin_again(self, stream: Stream, epoch: Epoch) -> None:
        """Begin another epoch of a stream with the same producer: all others know it already."""
        if stream.producer is None:
            self._end(stream)
        else:
            self._hub.begin_again(stream, stream.producer, epoch)

    def give_up(self, stream_id: str, term: int, to: str) -> Surrender | None:
        """Leave a stream to a node that asks for it; None if it is not produced here, or if this
        node has it again since."""
        stream = self._hub.find(stream_id)
        known = None if stream is None else self._surrender(stream, term, to)
        left = self._left.pop(stream_id, None)
        if known is None and left is not None and (left.term, left.to) == (term, to):
            return left.known
        return known

    def forget_left(self) -> None:
        """Forget the streams for which other nodes have not asked in time, and those that observers
        were told of who have left."""
        if not self._hub.is_observed:
            self._announced.clear()
        now = trio.current_time()
        for stream_id, left in list(self._left.items()):
            if now - left.at > SURRENDER_MEMORY:
                del self._left[stream_id]

    def _leave(self, stream: Stream, state: RemoteState) -> None:
        """Leave a stream to the node that has it by the directory, and may ask for it yet."""
        if state.owner_id != stream.owner_id:
            self._hub.change_owner(stream.stream_id, state.owner_id)
            self.learn(stream.stream_id, state)
            return
        term, to = state.term, state.node_id
        known = self._surrender(stream, term, to)
        if known is not None and known.epoch == state.epoch:
            self._left[stream.stream_id] = _Left(term, to, known, trio.current_time())

    def _surrender(self, stream: Stream, term: int, to: str) -> Surrender | None:
        """Leave a stream to the node that has taken it over; None if it is not produced here, or if
        this node has it again since."""
        if not stream.live or stream.is_remote or stream.term >= term:
            return None
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        producer = stream.producer
        known = Surrender(stream.epoch, stream.seq, stream.status, stream.fanout.keyframe)
        stream.producer = None
        stream.move_to(to, term)
        if producer is not None:
            producer.superseded()
        self._send_edges_away(stream, to)
        assert stream.owner_id is not None
        state = RemoteState(to, term, stream.epoch, stream.owner_id, stream.status, None)
        self.note_listed(stream.stream_id, state)
        self._hub.remote.changed(stream)
        if stream.fanout.audience:
            self._hub.remote.wanted(stream)
        self._hub.forget_unused(stream)
        return known

    def _send_edges_away(self, stream: Stream, to: str | None) -> None:
        """Give a stream to no other node any more, since it comes from somewhere else now."""
        for edge in list(stream.edges):
            peer = cast("EdgePeer", edge.peer)
            self._hub.unsubscribe_edge(stream, edge)
            peer.tell_moved(stream.stream_id, stream.term, to)

    def _is_stale(self, stream: Stream, state: RemoteState) -> bool:
        if stream.live and (stream.producer is not None or not stream.is_remote):
            return (state.epoch, state.term) < (stream.epoch, stream.term)
        # A term may have been lost with the tables, and then nobody has the stream in that.
        return state.epoch < stream.epoch

    def _follow(self, stream: Stream, state: RemoteState, link: Producer | None = None) -> None:
        """Go by what the directory says, or the link for which this stands."""
        if stream.live and (stream.epoch, stream.owner_id) != (state.epoch, state.owner_id):
            self._end(stream)
        if not stream.live:
            self._hub.start_remote(stream, state)
            return
        if (stream.origin, stream.term) != (state.node_id, state.term):
            self._follow_origin(stream, state, link)
        if link is not None or stream.producer is None:
            stream.describe(state.metadata)
            if state.status is not stream.status:
                stream.set_status(state.status)

    def _follow_origin(self, stream: Stream, state: RemoteState, link: Producer | None) -> None:
        """Get the frames from another node from now on."""
        former, stream.producer = stream.producer, None
        stream.move_to(state.node_id, state.term)
        self._send_edges_away(stream, state.node_id)
        if former is not None and former is not link:
            former.superseded()
        if link is None and stream.fanout.audience:
            self._hub.remote.wanted(stream)

    def _end(self, stream: Stream) -> None:
        former = stream.producer
        if stream.grace is not None:
            stream.grace.cancel()
        self._hub.end(stream)
        if former is not None:
            former.superseded()

    def _announce(self, stream_id: str, state: RemoteState) -> None:
        """Tell observers of a stream that nobody watches here."""
        before = self._announced.get(stream_id)
        if not self._hub.is_observed or (
            before is not None and (before.epoch, before.status) == (state.epoch, state.status)
        ):
            return
        self._announced[stream_id] = evolve(state, metadata=None)
        status = Status(stream_id=stream_id, epoch=state.epoch, status=state.status)
        self._hub.tell_observers(status, state.owner_id)
