"""What an authenticated peer sends: decoded, counted against its rates, and handed on."""

from __future__ import annotations

import codecs
import math
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from relay.concurrency.time_slice import TimeSlice
from relay.connection.answers import Answers, Queued
from relay.connection.authentication import Authentication
from relay.connection.peer import Peer
from relay.connection.session.publisher import Publisher
from relay.connection.session.session import Session
from relay.connection.store_queue import StoreQueue
from relay.guard.throttle import ExceededLimit, Throttle
from relay.metrics import Metrics
from relay.protocol.codec import MIN_LARGE_BYTES, InvalidMessage
from relay.protocol.endings import Ending
from relay.protocol.messages import (
    NO_METADATA,
    Ack,
    Alert,
    AlertsSince,
    Auth,
    ClientMessage,
    Error,
    ErrorCode,
    Register,
    Streams,
    Subscribe,
    Unsubscribe,
    VideoFrame,
)
from relay.transport import wire
from relay.transport.framing.frame_parser import Message

MAX_ACK_BYTES = 512
UTF8_DECODER = codecs.getincrementaldecoder("utf-8")
UTF8_STEP_BYTES = 64 * 1024
UNTIMED_BYTES = 64 * 1024
"""Bytes of frames without metadata that are decoded before the clock is looked at."""
MAX_INVALID_MESSAGES = 10
INVALID_MESSAGES_WINDOW = 60.0
"""Seconds in which so many invalid messages end a connection."""
ACK_REFUSAL_INTERVAL = 1.0
"""Seconds between two answers to invalid acks."""
QUEUED = (Auth, Register, Alert, AlertsSince)
"""What the store is asked about. It is answered in order, while frames and acks go on."""
REFUSED_IN_TIME = (Alert, AlertsSince)
"""Of these, what may be sent again later: too many must not hold up frames and acks for long."""
HELD_UP_BY: dict[type, tuple[type, ...]] = {
    Streams: (Register,),
    Unsubscribe: (Register, Subscribe),
}
"""What is answered at once, unless one of these is still to be answered."""


def read(peer: Peer, message: Message) -> ClientMessage | InvalidMessage:
    """Decode a message."""
    codec = peer.codec
    if (message.opcode == wire.BINARY) != codec.binary:
        kind = "binary" if codec.binary else "text"
        text = f"Messages of {codec.subprotocol} are {kind}"
        return InvalidMessage(ErrorCode.INVALID_MESSAGE, text)
    try:
        return codec.decode(message.payload)
    except InvalidMessage as problem:
        problem.__context__ = None  # it would hold this frame, which holds it
        return problem.with_traceback(None)


async def read_in_steps(
    peer: Peer, message: Message, time_slice: TimeSlice | None
) -> ClientMessage | InvalidMessage | None:
    """Decode a large message; others go on when the time is over: that of several messages, or of
    this one.

    None if the connection ends for it.
    """
    codec, time_slice = peer.codec, time_slice or TimeSlice()
    binary = message.opcode == wire.BINARY
    if binary != codec.binary:
        return read(peer, message)
    if not (binary or message.payload.isascii()):
        decoder = UTF8_DECODER()
        try:
            for at in range(0, len(message.payload), UTF8_STEP_BYTES):
                decoder.decode(message.payload[at : at + UTF8_STEP_BYTES])
                await time_slice.pause_if_over()
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            peer.end(Ending.NOT_UTF8)
            return None
    steps = codec.decode_in_steps(message.payload)
    try:
        while True:
            next(steps)
            await time_slice.pause_if_over()
    except StopIteration as end:
        request: ClientMessage = end.value
        return request
    except InvalidMessage as problem:
        problem.__context__ = None
        return problem.with_traceback(None)
    finally:
        steps.close()


@define(eq=False, repr=False)
class InvalidMessages:
    """Answers the invalid messages of a peer, until there are too many."""

    _peer: Peer
    _times: list[float] = field(factory=list)
    """When the last invalid messages came, by Trio's clock."""
    _ack_refused: float = -math.inf
    """When an invalid ack was last answered."""

    @property
    def none_yet(self) -> bool:
        """Whether all messages were valid so far."""
        return not self._times and self._ack_refused == -math.inf

    def refuse(self, problem: InvalidMessage) -> None:
        """Answer an invalid message.

        An `ack` goes with each frame, and its sender waits for no reply: a wrong one is answered
        now and then, and is not what a connection ends for.
        """
        now = trio.current_time()
        if problem.is_ack:
            if now - self._ack_refused < ACK_REFUSAL_INTERVAL:
                return
            self._ack_refused = now
        self._peer.tell(
            Error(
                code=problem.code,
                message=problem.message,
                id=problem.request_id,
                stream_id=problem.stream_id,
            )
        )
        if problem.is_ack:
            return
        self._times = [*self._times[1 - MAX_INVALID_MESSAGES :], now]
        many = len(self._times) == MAX_INVALID_MESSAGES
        if many and now - self._times[0] < INVALID_MESSAGES_WINDOW:
            self._peer.end(Ending.INVALID_MESSAGES)


@define(eq=False, repr=False)
class Inbox:
    """The messages of one session, handled in their order."""

    _peer: Peer
    _session: Session
    _authentication: Authentication
    _invalid: InvalidMessages
    _throttle: Throttle | None
    _metrics: Metrics
    _start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    """Starts a task that ends with the connection."""
    _publisher: Publisher = field(init=False)
    _store_queue: StoreQueue[Queued] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._publisher = self._session.publisher
        answers = Answers(self._peer, self._session, self._authentication)
        self._store_queue = StoreQueue(answers.answer, self._start_soon)

    async def receive(self, messages: list[Message]) -> None:
        """Handle messages, each when those before it are done; frames in a row go on together."""
        peer = self._peer
        if self._throttle is not None:
            excess = self._throttle.take(messages, trio.current_time())
            if excess is not None:
                self._drop(messages, excess)
                return
        frames: list[VideoFrame] = []
        time_slice, untimed = TimeSlice() if len(messages) > 1 else None, 0
        for message in messages:
            if time_slice is not None and untimed >= UNTIMED_BYTES:
                untimed = 0
                await time_slice.pause_if_over()
            if peer.ending is not None:
                break
            # Nearly all are small, and take less time than another coroutine would.
            size = len(message.payload)
            small = size <= MIN_LARGE_BYTES
            request = (
                read(peer, message) if small else await read_in_steps(peer, message, time_slice)
            )
            if isinstance(request, VideoFrame):
                frames.append(request)
                untimed += size if request.metadata is NO_METADATA else UNTIMED_BYTES
                continue
            if frames:
                await self._publish(frames)
                frames = []
            if peer.ending is not None or request is None:
                return
            await self._handle(request)
            untimed = UNTIMED_BYTES  # what takes long may be small
        if frames:
            await self._publish(frames)

    def count_overhead(self, count: int) -> None:
        """Count control frames and small fragments, which cost as much as messages do."""
        if self._throttle is not None:
            excess = self._throttle.take_overhead(count, trio.current_time())
            if excess is not None:
                self._complain(excess)

    def _drop(self, messages: list[Message], excess: ExceededLimit) -> None:
        """Drop messages that are too many, but for their acks."""
        self._slow_down(excess)
        self._take_acks(messages)
        if self._publisher.reports_received:
            self._publisher.note_received(sum(map(self._is_frame, messages)))

    def _take_acks(self, messages: list[Message]) -> None:
        """Of messages that are too many, take what nobody would send again: a window that waits for
        its `ack` lets no frame through that could be acknowledged."""
        for message in messages:
            if len(message.payload) <= MAX_ACK_BYTES and self._peer.ending is None:
                request = read(self._peer, message)
                if isinstance(request, Ack):
                    self._session.acknowledge(request)

    def _is_frame(self, message: Message) -> bool:
        """Whether a message that is dropped is a frame; a large one is hardly anything else."""
        large = len(message.payload) > MIN_LARGE_BYTES
        return large or isinstance(read(self._peer, message), VideoFrame)

    async def _handle(self, request: ClientMessage | InvalidMessage) -> None:
        if isinstance(request, Ack):
            self._session.acknowledge(request)
            return
        await self._peer.mailbox.wait_for_room()  # for the reply
        if self._peer.ending is not None:
            return
        if isinstance(request, InvalidMessage):
            self._invalid.refuse(request)
        elif self._has_to_queue(request):
            if isinstance(request, REFUSED_IN_TIME) and not await self._store_queue.wait_for_room():
                self._session.refuse_for_store(request)
            else:
                await self._store_queue.add(request)
        else:
            for_store = await self._session.handle(request)
            if for_store is not None:
                await self._store_queue.add(for_store)

    def _has_to_queue(self, request: ClientMessage) -> bool:
        if isinstance(request, QUEUED) or self._session.has_to_ask(request):
            return True
        queue, held_up_by = self._store_queue, HELD_UP_BY.get(type(request))
        return bool(queue) if held_up_by is None else queue.has(held_up_by)

    async def _publish(self, frames: list[VideoFrame]) -> None:
        self._publisher.note_received(len(frames))
        if self._throttle is not None:
            excess = self._throttle.take_frames(len(frames), trio.current_time())
            if excess is not None:
                self._slow_down(excess)
                return
        while self._store_queue and self._need_registration(frames):
            await self._store_queue.wait_for_answer()
        await self._publisher.publish(frames)

    def _need_registration(self, frames: list[VideoFrame]) -> bool:
        """Whether frames may belong to a registration that is not answered yet."""
        return any(
            self._publisher.changes_stream(register, frame)
            for register in self._store_queue.waiting(Register)
            for frame in frames
        )

    def _slow_down(self, excess: ExceededLimit) -> None:
        """Drop the excess."""
        self._publisher.skip()
        self._complain(excess)

    def _complain(self, excess: ExceededLimit) -> None:
        """Report the excess now and then, and end the connection if it persists."""
        self._metrics.limits_hit[excess.limit] += 1
        if excess.persists:
            self._peer.end(Ending.RATE_LIMITED, retry_after=excess.retry_after)
        elif excess.tell:
            text = f"Too many {excess.limit} in too short a time; some were dropped"
            self._peer.tell(
                Error(code=ErrorCode.RATE_LIMITED, message=text, retry_after=excess.retry_after)
            )
