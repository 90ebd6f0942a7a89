"""Moves a viewer to the worker process that has the phone of its stream, before it gets a frame.

A frame that crosses from one worker to another costs as much as two viewers. A client that does not
name its stream in the URL may have been given to any worker; its first `subscribe` names it. If it
has done nothing else yet, its connection is little more than a socket and an identity, which go to
the other worker, and the `subscribe` is answered there. The client sees no difference. See
`relay/workers/relocations.py` for how the processes agree on who has the connection.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import msgspec
import trio
from attrs import define, field

from relay.connection.context import Neighbours
from relay.connection.inbox import InvalidMessages, read
from relay.connection.peer import Peer
from relay.connection.session.session import Session
from relay.hub.hub import Hub
from relay.model.access.identity import Identity, Service, User
from relay.protocol.messages import VIDEO_FRAME, Subscribe
from relay.transport.framing.frame_parser import Message

MAX_SUBSCRIBE_BYTES = 4096
"""Bytes of a `subscribe` that is looked at. No client sends a longer one."""
MAX_GRANTS = 1000
"""Streams that are granted to who is moved: all of them go through the parent."""
MIN_SECONDS_LEFT = 75.0
"""Seconds to the end of a session: what is due before it does not fall into the move."""


class RelocatedViewer(msgspec.Struct, frozen=True, array_like=True):
    """All that is known of a connection that has authenticated and sent one `subscribe`."""

    accepted_at: float
    """By `time.monotonic()`, which all processes of a machine share."""
    peer: str
    """`HOST:PORT` of the other side, which may be a proxy."""
    address: str
    """Of the client, perhaps as a proxy has told it."""
    base_path: str
    subprotocol: str
    takes_parts: bool
    progress_interval: float | None
    """Seconds; None where the client has asked for no `progress`."""
    identity: dict[str, Any]
    """The fields of its user or service."""
    token: str
    opcode: int
    payload: bytes
    """Of its `subscribe`."""

    def __repr__(self) -> str:
        return "RelocatedViewer()"

    def encode(self) -> bytes:
        return _encode(self)

    @classmethod
    def decode(cls, data: bytes) -> RelocatedViewer:
        """`msgspec.DecodeError` for what is none."""
        return _decode(data)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RelocatedViewer).decode


def fields_of(identity: Identity) -> dict[str, Any]:
    """An identity in values that a message can hold."""
    kept = [each.name for each in attrs.fields(type(identity)) if each.init]
    return {name: getattr(identity, name) for name in kept}


def identity_of(fields: dict[str, Any]) -> Identity:
    """The identity with these fields; `TypeError` where they do not fit."""
    kept: dict[str, Any] = {
        name: frozenset(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return User(**kept) if "session_id" in kept else Service(**kept)


@define(eq=False)
class Relocation:
    """A viewer that may go to another worker.

    Both workers have one until the parent has decided which of them goes on. Meanwhile neither
    reads or writes, and what concerns the viewer is noted here, to be done by the one that has it.
    """

    number: int
    """Of the connection."""
    viewer: RelocatedViewer
    identity: Identity
    target: str
    """The node that it may go to."""
    stream_id: str
    connected: socket.socket | None = None
    """Its socket, while this process has it."""
    since: float = field(factory=trio.current_time)
    """When the identity was as it says, by Trio's clock."""
    is_revoked: bool = False
    is_ended: bool = False
    """Whether an operator has ended it."""
    retry_after: int | None = None
    """The milliseconds after which it is to come back, since this worker drains."""
    decided: trio.Event = field(factory=trio.Event)
    is_ours: bool = False
    """Whether this process goes on with it, once that is decided."""

    def become(self, identity: Identity) -> None:
        """Note what the store says now of the same session or service."""
        self.identity, self.since = identity, trio.current_time()

    @property
    def identity_now(self) -> Identity:
        """The identity, whose session has gone on meanwhile."""
        identity = self.identity
        if isinstance(identity, User) and identity.remaining is not None:
            waited = trio.current_time() - self.since
            return attrs.evolve(identity, remaining=identity.remaining - waited)
        return identity

    def revoked(self) -> None:
        """Note that the session, its user or the service's token is gone."""
        self.is_revoked = True

    def pick_up(self) -> socket.socket:
        """Take the socket, to go on with it."""
        taken, self.connected = self.connected, None
        assert taken is not None
        return taken

    def close(self) -> None:
        """Close the socket in this process, which the peer does not notice if another has it."""
        if self.connected is not None:
            self.connected.close()
            self.connected = None

    def settle(self, *, ours: bool) -> None:
        """Note who goes on with it; the first decision counts."""
        if not self.decided.is_set():
            self.is_ours = ours
            self.decided.set()


@define(eq=False)
class FirstRequest:
    """Looks at the first message of a session, and hands all that follows to the inbox."""

    _peer: Peer
    _session: Session
    _invalid: InvalidMessages
    _hub: Hub
    _neighbours: Neighbours
    _leave: Callable[[Relocation], object]
    """Ends the connection here, for that."""
    _receive: Callable[[list[Message]], Awaitable[None]]
    """Of the inbox, as what follows."""
    _count_overhead: Callable[[int], object]
    _overhead_at: float = -1.0
    """When the last control frame came."""

    def count_overhead(self, count: int) -> None:
        self._overhead_at = self._peer.stream.last_received
        self._count_overhead(count)

    async def receive(self, messages: list[Message]) -> None:
        """Handle the first messages of a session; raises `trio.Cancelled` when the connection goes
        elsewhere."""
        stream = self._peer.stream
        stream.hand_on_to(self._receive, self._count_overhead)
        alone = len(messages) == 1 and self._overhead_at != stream.last_received
        request = self._subscribe_in(messages[0]) if alone else None
        if request is not None:
            await self._session.locate(request)
            target = self._target_of(request)
            if target is not None and self._can_leave():
                self._leave(self._relocation(request.stream_id, target, messages[0]))
                self._forget(request.stream_id)
                await trio.lowlevel.checkpoint_if_cancelled()
                raise AssertionError("a connection that leaves is cancelled")
        try:
            await self._receive(messages)
        finally:
            self._session.located = None
            if request is not None:
                self._forget(request.stream_id)

    def _subscribe_in(self, message: Message) -> Subscribe | None:
        if len(message.payload) > MAX_SUBSCRIBE_BYTES:
            return None
        request = read(self._peer, message)
        if isinstance(request, Subscribe) and VIDEO_FRAME in (request.consumes or ()):
            return request
        return None

    def _target_of(self, request: Subscribe) -> str | None:
        """The worker that is better for it; None where this one is. What crosses already for
        others here costs nothing more, so large audiences stay on all workers."""
        stream = self._hub.find(request.stream_id)
        if stream is None or not stream.live or stream.origin is None or stream.fanout.audience:
            return None
        assert stream.owner_id is not None
        visible = self._peer.may_watch(request.stream_id, stream.owner_id)
        return stream.origin if visible and self._neighbours.is_near(stream.origin) else None

    def _relocation(self, stream_id: str, target: str, request: Message) -> Relocation:
        peer, identity = self._peer, self._session.identity
        if isinstance(identity, User):
            identity = attrs.evolve(identity, remaining=self._session.seconds_left)
        viewer = RelocatedViewer(
            accepted_at=peer.accepted_at,
            peer=peer.stream.link.peer,
            address=peer.address.text,
            base_path=peer.base_path,
            subprotocol=peer.codec.subprotocol,
            takes_parts=peer.takes_parts,
            progress_interval=peer.stream.progress_interval,
            identity=fields_of(identity),
            token=peer.token or "",
            opcode=request.opcode,
            payload=request.payload,
        )
        return Relocation(peer.number, viewer, identity, target, stream_id)

    def _forget(self, stream_id: str) -> None:
        """Let the hub forget what was located, if nobody watches it after all."""
        stream = self._hub.find(stream_id)
        if stream is not None:
            self._hub.forget_unused(stream)

    def _can_leave(self) -> bool:
        """Whether there is nothing but what a `RelocatedViewer` holds."""
        peer, identity = self._peer, self._session.identity
        granted = identity.granted if isinstance(identity, User) else identity.consume
        return (
            len(granted) <= MAX_GRANTS
            and not peer.is_ending
            and peer.stream.is_at_rest
            and not peer.mailbox.waiting()
            and self._invalid.none_yet
            and not (isinstance(identity, User) and identity.link is not None)
            and self._session.seconds_left > MIN_SECONDS_LEFT
        )
