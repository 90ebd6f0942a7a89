"""The peer of one connection, as all parts of the connection know it."""

from __future__ import annotations

import time
from functools import partial

import structlog
import trio
from attrs import define, field

from relay.audit.log import AuditLog, subject_of, unless_token
from relay.guard.client_address import ClientAddress
from relay.metrics import Limit, Metrics
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.protocol import states
from relay.protocol.codec import JSON_CODEC, Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import (
    Error,
    FramesReceived,
    RequestId,
    ServerMessage,
    SlowLinkMessage,
    Status,
    StreamStatus,
)
from relay.protocol.states import State, Step
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.mailbox import Mailbox
from relay.transport.parts import MAX_SHORT_BYTES, parts_of
from relay.transport.stream import FrameStream

log = structlog.get_logger()


@define(eq=False, repr=False)
class Peer:
    """The client at the other end: it can be told something, ended, and recorded.

    The parts of a connection hold the peer, and the peer holds none of them.
    """

    number: int
    """The number of the connection, in the order of acceptance."""
    stream: FrameStream
    _audit: AuditLog
    _metrics: Metrics
    _unread: Budget
    """Bounds the replies and alerts that all peers together have not read."""
    address: ClientAddress = field(init=False)
    """The address of the client, as far as it is known."""
    base_path: str = ""
    """The path under which it reaches relay."""
    codec: Codec = JSON_CODEC
    """The encoding of its messages."""
    accepted_at: float = field(factory=time.monotonic)
    """When it was accepted, by the clock of all processes of this machine."""
    takes_parts: bool = False
    """Whether it takes a long message as several `part` messages."""
    mailbox: Mailbox = field(init=False)
    state: State = State.CONNECTING
    identity: Identity | None = None
    """The identity, once authenticated; it can change at any time."""
    token: str | None = field(default=None, repr=False)
    """The token of its last authentication, kept to recognise it in the wrong place."""
    ending: Ending | None = None
    """Why the connection ends; None as long as it lasts."""
    ended_by: RequestId = None
    """The request that caused the end."""
    retry_after: int | None = None
    """Milliseconds to wait before reconnecting, if not those of the ending."""
    life: trio.CancelScope | None = None
    """The scope of the connection's nursery. It has a deadline until the peer is authenticated."""

    def __attrs_post_init__(self) -> None:
        self.address = ClientAddress.of_peer(self.stream.link.peer)
        self.mailbox = Mailbox(self.stream.outlet, self._unread, self._give_way)

    @property
    def is_ending(self) -> bool:
        """Whether the connection ends, or has run out of time."""
        return self.ending is not None or (self.life is not None and self.life.cancel_called)

    @property
    def _opcode(self) -> int:
        return wire.BINARY if self.codec.binary else wire.TEXT

    def advance(self, step: Step) -> None:
        """Go on to the state that a step leads to."""
        self.state = states.after(self.state, step)

    def encode(self, message: ServerMessage) -> bytes:
        """A message for the wire; as one WebSocket frame if it is not long."""
        return wire.message(self._opcode, self.codec.encode(message))

    def size_of(self, message: ServerMessage) -> int:
        """The bytes of a message in the encoding of this peer."""
        return len(self.codec.encode(message))

    def may_watch(self, stream_id: str, owner_id: str) -> bool:
        """Whether the peer may watch a stream now, by its id and its owner."""
        return self.identity is not None and permissions.may_watch(
            self.identity, stream_id, owner_id
        )

    def _encode_update(self, message: ServerMessage | FramesReceived) -> bytes:
        """An update for the wire; if it is long, in parts where these are asked for."""
        encoded = self.codec.encode(message)
        if self.takes_parts and len(encoded) > MAX_SHORT_BYTES:
            return b"".join(parts_of(self.codec, encoded))
        return wire.message(self._opcode, encoded)

    def tell(self, *messages: ServerMessage | SlowLinkMessage) -> None:
        """Send messages, short ones in one write, ahead of video, unless the connection has ended;
        a peer that lets too many wait is too slow. Never waits."""
        if self.ending is not None:
            return
        frames: list[bytes] = []
        for message in messages:
            encoded = self.codec.encode(message)
            if self.takes_parts and len(encoded) > MAX_SHORT_BYTES:
                frames += parts_of(self.codec, encoded)
            else:
                frames.append(wire.message(self._opcode, encoded))
        if 1 < len(frames) == len(messages):
            frames = [b"".join(frames)]
        if not all(map(self.mailbox.post, frames)):
            self.end(Ending.TOO_SLOW)

    def tell_received(self, received: FramesReceived) -> None:
        """Send it ahead of video, in place of an earlier one that still waits."""
        if self.ending is None:
            self.mailbox.post_update(("received",), partial(self._encode_update, received))

    def tell_status(self, status: Status) -> None:
        """Send a status as `tell` does, in place of one of the same stream that still waits.

        One that brings metadata, or a number of consumers, takes the place of such a one only.
        """
        if status.consumers is not None:
            kind = "consumers"
        else:
            kind = "status" if status.metadata is None else "metadata"
            if status.status is StreamStatus.OFFLINE:
                self.mailbox.drop_update(("metadata", status.stream_id))
        about = (kind, status.stream_id)
        encode = partial(self._encode_update, status)
        if self.ending is None and not self.mailbox.post_update(about, encode):
            self.end(Ending.TOO_SLOW)

    def end(
        self, ending: Ending, *, request_id: RequestId = None, retry_after: int | None = None
    ) -> None:
        """End the connection; the first reason given is the one that counts.

        The goodbye names the request that caused it, if one did, and the milliseconds to wait,
        where they differ from what the ending says.
        """
        if self.ending is None:
            self.ending, self.ended_by, self.retry_after = ending, request_id, retry_after
            if self.life is not None:
                self.life.cancel()

    def fail(self, problem: Exception) -> None:
        """End because of a bug, and log it."""
        self.end(Ending.INTERNAL_ERROR)
        log.error("connection failed", connection=self.number, exc_info=problem)

    def lost(self) -> None:
        """End because no more bytes will come."""
        self.end(Ending.CLIENT_CLOSED if self.stream.peer_closed else Ending.CLIENT_GONE)

    def crowded_out(self, limit: Limit) -> None:
        """End to make room, since there are too many connections."""
        self._metrics.limits_hit[limit] += 1
        if self.ending is None:
            self.end(Ending.TOO_MANY_CONNECTIONS)
        else:
            self.stream.abort()  # its goodbye takes too long

    def _give_way(self) -> None:
        """End, since this user has most unread of all, and all together have too much."""
        self._metrics.limits_hit[Limit.REPLY_BUFFER] += 1
        self.end(Ending.TOO_SLOW)

    @property
    def hurried(self) -> bool:
        """Whether a newcomer waits for the place: there is no time for an answer to the goodbye."""
        return self.ending is Ending.TOO_MANY_CONNECTIONS and self.state is State.OPEN

    def goodbye(self) -> Error | None:
        """The message that says why the connection ends; None for endings that have none."""
        goodbye = (self.ending or Ending.SHUTDOWN).value
        if goodbye.error is None:
            return None
        return Error(
            code=goodbye.error,
            message=goodbye.message,
            id=self.ended_by,
            retry_after=self.retry_after or goodbye.retry_after,
        )

    def record(
        self,
        what: str,
        *,
        outcome: str,
        reason: str = "",
        stream_id: str | None = None,
        identity: Identity | None = None,
    ) -> None:
        """Record an event of this peer in the audit log, by default under its own identity."""
        self._audit.record(
            what,
            outcome=outcome,
            reason=reason,
            address=self.address.text,
            stream_id=unless_token(stream_id, self.token),
            connection=self.number,
            **subject_of(self.identity if identity is None else identity),
        )
