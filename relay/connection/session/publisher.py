"""The stream that a session produces: its registration, and its frames."""

from __future__ import annotations

import secrets

import trio
from attrs import define, field

from relay.connection.context import Claimed, SessionContext
from relay.connection.peer import Peer
from relay.connection.session.participant import Participant
from relay.connection.session.refusals import STORE_REJECTS, Refusals
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.peer import Producer
from relay.hub.stream import Stream
from relay.metrics import Limit
from relay.model.access import permissions
from relay.model.access.identity import Identity, User
from relay.model.cluster import ClaimRequest
from relay.protocol.endings import Ending
from relay.protocol.messages import (
    ALERT,
    REGISTER,
    ErrorCode,
    FramesReceived,
    Register,
    Success,
    VideoFrame,
)
from relay.protocol.states import Step

REMINDER_INTERVAL = 1.0
"""Seconds between two errors about refused frames."""


@define(eq=False)
class Publisher:
    """Publishes the frames of one session, in at most one stream at a time."""

    _peer: Peer
    _participant: Participant
    _context: SessionContext
    _refusals: Refusals
    _stream: Stream | None = None
    _reminded: float = field(default=float("-inf"), init=False)
    _received: int = field(default=0, init=False)
    """`video-frame` messages of the connection."""
    reports_received: bool = field(default=False, init=False)
    """Whether the peer is told how many came."""

    def is_of(self, stream_id: str) -> bool:
        return self._stream is not None and self._stream.stream_id == stream_id

    def changes_stream(self, message: Register, frame: VideoFrame) -> bool:
        """Whether a frame that came behind a registration has to wait for its answer: not if it is
        of the stream as it is registered already."""
        stream = self._stream
        if stream is None or stream.producer is not self._participant:
            return True
        if message.stream_id != stream.stream_id:
            return frame.stream_id != stream.stream_id
        same_layers = message.layers == stream.registered_layers
        return message.metadata != stream.metadata or not same_layers

    async def register(self, message: Register) -> str | None:
        """Answer the request; returns the id of the stream if it was registered."""
        who = self._participant.identity
        stream_id = message.stream_id or f"stream_{secrets.token_hex(16)}"
        if not permissions.may_register(who, stream_id, None):
            text = "This service may not register this stream"
            self._refusals.refuse(message, ErrorCode.UNAUTHORIZED, text, message.stream_id)
            return None
        assert who.user_id is not None
        rate = self._context.limits.register_rate
        wait = None if rate is None else rate.hit(who.sender)
        if wait is not None:
            self._refusals.refuse_for_rate(message, Limit.REGISTRATIONS, wait, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, who.user_id):
            return None
        try:
            claimed = await self._claim(message, stream_id, who, who.user_id)
            before = self._stream
            while before is not None and before.stream_id != stream_id and before.fanout.busy:
                await before.fanout.wait_until_idle()  # its last frames come before its end
            # The connection may end in the very moment of the answer.
            if claimed is None or self._peer.ending is not None:
                return None
            return self._claimed(message, stream_id, claimed)
        finally:
            self._context.claims.settle(stream_id)

    async def _claim(
        self, message: Register, stream_id: str, who: Identity, user_id: str
    ) -> Claimed | None:
        """The answer of the store; None if the request is answered."""
        replaced = self._stream
        request = ClaimRequest(
            stream_id=stream_id,
            user_id=user_id,
            by_session=_is_in_sessions_database(who),
            connection=self._participant.number,
            accepted_at=self._peer.accepted_at,
            metadata=message.metadata,
            most=self._context.limits.max_streams,
            replaced=None if replaced is None else replaced.stream_id,
        )
        try:
            claimed = await self._context.claims.claim(request)
            if claimed.outcome == "forbidden":
                raise StoreUnavailable
            if claimed.outcome != "rejected":
                return claimed
        except StoreUnavailable:
            self._peer.record(REGISTER, outcome="unavailable", stream_id=stream_id)
            self._refusals.refuse_for_store(message)
            return None
        except StoreRejects:
            pass
        self._refusals.refuse(message, ErrorCode.INVALID_MESSAGE, STORE_REJECTS, stream_id)
        return None

    def _claimed(self, message: Register, stream_id: str, claimed: Claimed) -> str | None:
        owner_id = claimed.owner_id
        if claimed.outcome == "taken" or not permissions.may_register(
            self._participant.identity, stream_id, owner_id
        ):
            text = "This stream id is taken"
            self._refusals.refuse(message, ErrorCode.UNAUTHORIZED, text, stream_id)
            return None
        if claimed.outcome == "superseded":
            self._supersede(message, stream_id)
            return None
        if claimed.outcome == "too_many":
            self._refuse_more_streams(message, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, owner_id):  # meanwhile
            return None
        return self._produce(message, stream_id, claimed)

    def _has_too_many_streams(self, message: Register, stream_id: str, user_id: str) -> bool:
        most, replaced = self._context.limits.max_streams, self._stream
        others = {stream_id} if replaced is None else {stream_id, replaced.stream_id}
        if most is None or self._context.hub.count_streams_of(user_id, but=others) < most:
            return False
        self._refuse_more_streams(message, stream_id)
        return True

    def _refuse_more_streams(self, message: Register, stream_id: str) -> None:
        self._context.metrics.limits_hit[Limit.STREAMS_OF_USER] += 1
        retry_after = Ending.TOO_MANY_CONNECTIONS.value.retry_after
        text = f"A user may have {self._context.limits.max_streams} streams online"
        code = ErrorCode.TOO_MANY_CONNECTIONS
        self._refusals.refuse(message, code, text, stream_id, retry_after=retry_after)

    def _supersede(self, message: Register, stream_id: str) -> None:
        reason = "a newer connection produces it"
        self._peer.record(REGISTER, outcome="refused", reason=reason, stream_id=stream_id)
        self._peer.end(Ending.SUPERSEDED, request_id=message.id)

    def _record_success(self, stream_id: str, other: Producer | None, claimed: Claimed) -> None:
        reason = ""
        if claimed.before is not None and claimed.outcome == "moved":
            reason = f"from node {claimed.before}"
        elif other is not None and other is not self._participant:
            reason = f"from connection {other.number}"
        what = "takeover" if reason else REGISTER
        self._peer.record(what, outcome="succeeded", reason=reason, stream_id=stream_id)

    def _produce(self, message: Register, stream_id: str, claimed: Claimed) -> str | None:
        hub, before, participant = self._context.hub, self._stream, self._participant
        other = hub.producer(stream_id)
        stream = hub.register(
            stream_id,
            claimed.owner_id,
            participant,
            message.metadata,
            layers=message.layers,
            epoch=claimed.epoch,
        )
        if stream is None:
            self._supersede(message, stream_id)
            return None
        self._record_success(stream_id, other, claimed)
        if before is not None and before is not stream:
            hub.release(before, participant, at_once=True)
        self._stream = stream
        self._peer.advance(Step.REGISTER)
        participant.wants_alerts = message.consumes is None or ALERT in message.consumes
        self._peer.tell(
            Success(
                code="REGISTERED",
                message=f"Registration successful. Stream ID: {stream_id}",
                id=message.id,
                stream_id=stream_id,
                epoch=stream.epoch,
                window=message.window,
                layers=None if message.layers is None else [each.id for each in message.layers],
            )
        )
        stream.tell_producer()
        reported, self.reports_received = self.reports_received, message.window is not None
        if self._received and not reported:
            self.note_received(0)  # of those behind the request
        return stream_id

    async def publish(self, frames: list[VideoFrame]) -> None:
        """Publish frames that came at once, in the registered stream."""
        stream, own = self._stream, []
        for frame in frames:
            if stream is None:
                text = "Register a stream before sending frames"
                self._remind(frame, ErrorCode.NOT_REGISTERED, text)
            elif frame.stream_id is not None and frame.stream_id != stream.stream_id:
                text = "This connection registered another stream"
                self._remind(frame, ErrorCode.UNAUTHORIZED, text)
            elif frame.layer is not None and not stream.has_layer(frame.layer):
                text = "This stream was registered without such a layer"
                self._remind(frame, ErrorCode.INVALID_MESSAGE, text)
            else:
                own.append(frame)
        if stream is not None:
            await stream.publish(own, self._participant)

    def note_received(self, count: int) -> None:
        """Note that frames have come, whatever becomes of them, and tell the peer if it asked."""
        self._received += count
        if self.reports_received and self._stream is not None:
            received = FramesReceived(stream_id=self._stream.stream_id, frames=self._received)
            self._peer.tell_received(received)

    def skip(self) -> None:
        """Frames of the peer were dropped before they came here."""
        if self._stream is not None:
            self._stream.skip(self._participant)

    def reconsider(self) -> None:
        """End the connection if the peer may not produce its stream any more."""
        stream, who = self._stream, self._participant.identity
        if stream is not None and not permissions.may_register(
            who, stream.stream_id, stream.owner_id
        ):
            self._participant.lost_stream()

    def close(self) -> None:
        """Leave the stream."""
        if self._stream is not None:
            self._context.hub.release(self._stream, self._participant)

    def _remind(self, frame: VideoFrame, code: ErrorCode, text: str) -> None:
        """Refuse a frame, at most once a second however many come."""
        now = trio.current_time()
        if now - self._reminded >= REMINDER_INTERVAL:
            self._reminded = now
            self._refusals.refuse(frame, code, text, frame.stream_id)


def _is_in_sessions_database(who: Identity) -> bool:
    """Whether the owner is a user of the database in which Better Auth keeps its sessions, who can
    be seen to be deleted."""
    return who.source == "session" if isinstance(who, User) else who.user_is_stored
