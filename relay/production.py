"""The stream that a session produces: its registration, and its frames. Floor 3."""

from __future__ import annotations

import secrets

import trio
from attrs import define, field

from relay import policy
from relay.answers import Answers
from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.hub.stream import Stream
from relay.metrics import Limit
from relay.model import User
from relay.participant import Line, Participant
from relay.protocol.messages import (
    ALERT,
    REGISTER,
    ErrorCode,
    Register,
    Success,
    VideoFrame,
)
from relay.services import Services

REMINDER = 1.0
"""Seconds between two errors about frames that cannot be taken."""


@define(eq=False)
class Production:
    """Of one session: at most one stream at a time."""

    _participant: Participant
    _line: Line
    _services: Services
    _answers: Answers
    _stream: Stream | None = None
    _reminded: float = field(default=float("-inf"), init=False)

    def is_of(self, stream_id: str) -> bool:
        return self._stream is not None and self._stream.stream_id == stream_id

    async def register(self, message: Register) -> str | None:
        """Answer the request; the id of the stream, if there is one now."""
        who = self._participant.identity
        if not policy.may_register(who, None):
            text = "Only users register streams"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, message.stream_id)
            return None
        assert isinstance(who, User)
        stream_id = message.stream_id or f"stream_{secrets.token_hex(16)}"
        rate = self._services.register_rate
        wait = None if rate is None else rate.hit(who.sender)
        if wait is not None:
            self._answers.refuse_for_rate(message, Limit.REGISTRATIONS, wait, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, who.user_id):
            return None
        try:
            owner_id = await self._services.owners.claim(stream_id, who.user_id)
        except StoreUnavailable:
            self._line.audit(REGISTER, outcome="unavailable", stream_id=stream_id)
            self._answers.refuse_for_store(message)
            return None
        if self._line.ending is not None:  # in the very moment of the answer
            return None
        return self._claimed(message, stream_id, owner_id)

    def _claimed(self, message: Register, stream_id: str, owner_id: str) -> str | None:
        if not policy.may_register(self._participant.identity, owner_id):
            text = "This stream id is taken"
            self._answers.refuse(message, ErrorCode.UNAUTHORIZED, text, stream_id)
            return None
        if self._has_too_many_streams(message, stream_id, owner_id):  # meanwhile
            return None
        return self._produce(message, stream_id, owner_id)

    def _has_too_many_streams(self, message: Register, stream_id: str, user_id: str) -> bool:
        most, replaced = self._services.max_streams, self._stream
        others = {stream_id} if replaced is None else {stream_id, replaced.stream_id}
        if most is None or self._services.hub.count_streams_of(user_id, but=others) < most:
            return False
        self._services.metrics.limits_hit[Limit.STREAMS_OF_USER] += 1
        retry_after = Ending.TOO_MANY_CONNECTIONS.value.retry_after
        text = f"A user may have {most} streams online"
        code = ErrorCode.TOO_MANY_CONNECTIONS
        self._answers.refuse(message, code, text, stream_id, retry_after=retry_after)
        return True

    def _produce(self, message: Register, stream_id: str, owner_id: str) -> str | None:
        hub, before, participant = self._services.hub, self._stream, self._participant
        other = hub.producer(stream_id)
        stream = hub.register(stream_id, owner_id, participant, message.metadata)
        if stream is None:
            reason = "a newer connection produces it"
            self._line.audit(REGISTER, outcome="refused", reason=reason, stream_id=stream_id)
            self._line.end(Ending.SUPERSEDED, request_id=message.id)
            return None
        if other is None or other is participant:
            self._line.audit(REGISTER, outcome="succeeded", stream_id=stream_id)
        else:
            reason = f"from connection {other.accepted}"
            self._line.audit("takeover", outcome="succeeded", reason=reason, stream_id=stream_id)
        if before is not None and before is not stream:
            hub.release(before, participant, at_once=True)
        self._stream = stream
        participant.wants_alerts = message.consumes is None or ALERT in message.consumes
        participant.tell(
            Success(
                code="REGISTERED",
                message=f"Registration successful. Stream ID: {stream_id}",
                id=message.id,
                stream_id=stream_id,
                epoch=stream.epoch,
            )
        )
        stream.tell_producer()
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
            else:
                own.append(frame)
        if stream is not None:
            await stream.publish(own, self._participant)

    def skip(self) -> None:
        """Frames of the peer were dropped before they came here."""
        if self._stream is not None:
            self._stream.skip(self._participant)

    def close(self) -> None:
        """Leave the stream."""
        if self._stream is not None:
            self._services.hub.release(self._stream, self._participant)

    def _remind(self, frame: VideoFrame, code: ErrorCode, text: str) -> None:
        """Refuse a frame, at most once a second however many come."""
        now = trio.current_time()
        if now - self._reminded >= REMINDER:
            self._reminded = now
            self._answers.refuse(frame, code, text, frame.stream_id)
