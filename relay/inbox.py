"""What one peer sends: read, counted, and handed to whom it is for. Floor 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import define, field

from relay.authentication import Authentication
from relay.closing import Ending
from relay.errands import Errands
from relay.guard.throttle import Excess, Throttle
from relay.metrics import Metrics
from relay.protocol.codec import Codec, InvalidMessage
from relay.protocol.messages import (
    Ack,
    Alert,
    AlertsSince,
    Auth,
    ClientMessage,
    Error,
    ErrorCode,
    ServerMessage,
    Streams,
    Unsubscribe,
    VideoFrame,
)
from relay.session import Session
from relay.transport import wire
from relay.transport.splice import Message

LONGEST_ACK = 512
"""Bytes."""
INVALID_MESSAGES = 10
INVALID_WITHIN = 60.0
"""So many invalid messages in so many seconds end a connection."""
FOR_THE_STORE = (Alert, AlertsSince)
OVERTAKING = (Ack, Unsubscribe, Streams)
"""What does not wait, as frames do not, while the store is asked about an alert."""


class Line(Protocol):
    """The connection that messages come by."""

    @property
    def ending(self) -> Ending | None: ...

    def tell(self, message: ServerMessage) -> object: ...

    def end(self, ending: Ending, *, retry_after: int | None = None) -> object: ...

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> object:
        """Start a task that ends with the connection."""


@define(eq=False)
class Inbox:
    """Of one connection. Nothing may come before it is opened."""

    _line: Line
    _authentication: Authentication
    _metrics: Metrics
    _codec: Codec | None = None
    _session: Session | None = None
    _throttle: Throttle | None = None
    _invalid_at: list[float] = field(factory=list)
    """When the last invalid messages came, by Trio's clock."""
    _errands: Errands[ClientMessage] | None = None
    """None before there is one."""

    def open(self, codec: Codec) -> None:
        """From now on messages come, to authenticate with at first."""
        self._codec = codec

    def serve(self, session: Session, throttle: Throttle | None) -> None:
        """From now on messages are for a session."""
        self._session, self._throttle = session, throttle

    async def receive(self, messages: list[Message]) -> None:
        """Handle messages, each when those before it are done; frames in a row go on together."""
        if self._throttle is not None:
            excess = self._throttle.take(messages, trio.current_time())
            if excess is not None:
                self._slow_down(excess)
                await self._take_acks(messages)
                return
        frames: list[VideoFrame] = []
        for message in messages:
            request = self._read(message)
            if isinstance(request, VideoFrame) and self._session is not None:
                frames.append(request)
                continue
            if frames:
                await self._publish(frames)
                frames = []
            if self._line.ending is not None:
                return
            if isinstance(request, InvalidMessage):
                self._refuse(request)
            elif request is not None:
                await self._handle(request)
        if frames:
            await self._publish(frames)

    def count_noise(self, count: int) -> None:
        """Count control frames and small fragments, which cost as much as messages do."""
        if self._throttle is not None:
            excess = self._throttle.take_noise(count, trio.current_time())
            if excess is not None:
                self._complain(excess)

    async def _take_acks(self, messages: list[Message]) -> None:
        """Of messages that are too many, take what nobody would send again: a window that waits for
        its `ack` lets no frame through that could be acknowledged."""
        for message in messages:
            if len(message.payload) <= LONGEST_ACK:
                request = self._read(message)
                if isinstance(request, Ack) and self._session is not None:
                    await self._session.handle(request)

    def _read(self, message: Message) -> ClientMessage | InvalidMessage | None:
        """What a message says; None when it is not even looked at."""
        if self._line.ending is not None:
            return None
        codec = self._codec
        if codec is None:
            self._line.end(Ending.PROTOCOL_ERROR)  # nothing may come before our 101
            return None
        if self._session is None and not self._authentication.allow_message():
            return None
        if (message.opcode == wire.BINARY) != codec.binary:
            kind = "binary" if codec.binary else "text"
            text = f"Messages of {codec.subprotocol} are {kind}"
            return InvalidMessage(ErrorCode.INVALID_MESSAGE, text)
        try:
            return codec.decode(message.payload)
        except InvalidMessage as problem:
            return problem

    async def _handle(self, request: ClientMessage) -> None:
        if self._errands and not isinstance(request, (*OVERTAKING, *FOR_THE_STORE)):
            await self._errands.finish()
        if isinstance(request, Auth):
            await self._authentication.handle(request)
        elif self._session is None:
            self._authentication.require(request.id)
        elif isinstance(request, FOR_THE_STORE):
            await self._run_errand(request, self._session)
        else:
            follows = await self._session.handle(request)
            if follows is not None:
                await self._run_errand(follows, self._session)

    async def _run_errand(self, request: ClientMessage, session: Session) -> None:
        """Have it done in turn; what overtakes goes on meanwhile."""
        if self._errands is None:
            self._errands = Errands(session.handle, self._line.start_soon)
        await self._errands.add(request)

    async def _publish(self, frames: list[VideoFrame]) -> None:
        assert self._session is not None
        if self._throttle is not None:
            excess = self._throttle.take_frames(len(frames), trio.current_time())
            if excess is not None:
                self._slow_down(excess)
                return
        await self._session.publish(frames)

    def _slow_down(self, excess: Excess) -> None:
        """Drop what is too much."""
        if self._session is not None:
            self._session.skip_frames()
        self._complain(excess)

    def _complain(self, excess: Excess) -> None:
        """Say now and then that it is too much, and close when it goes on."""
        self._metrics.limits_hit[excess.limit] += 1
        if excess.goes_on:
            self._line.end(Ending.RATE_LIMITED, retry_after=excess.retry_after)
        elif excess.tell:
            text = f"Too many {excess.limit} in too short a time; some were dropped"
            self._line.tell(
                Error(code=ErrorCode.RATE_LIMITED, message=text, retry_after=excess.retry_after)
            )

    def _refuse(self, problem: InvalidMessage) -> None:
        if self._session is None and not problem.is_auth:
            self._authentication.require(problem.request_id)
            return
        self._line.tell(
            Error(
                code=problem.code,
                message=problem.message,
                id=problem.request_id,
                stream_id=problem.stream_id,
            )
        )
        now = trio.current_time()
        self._invalid_at = [*self._invalid_at[1 - INVALID_MESSAGES :], now]
        if len(self._invalid_at) == INVALID_MESSAGES and now - self._invalid_at[0] < INVALID_WITHIN:
            self._line.end(Ending.INVALID_MESSAGES)
