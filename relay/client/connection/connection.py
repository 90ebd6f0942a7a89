"""One connection of a client, from its `auth` to its end.

Messages to send wait here for the one writer. One task iterates over the connection: that reads it,
returns its events, and gives the answers to the requests that wait for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define, field

from relay.client.connection.clock import RelayClock
from relay.client.connection.messages import (
    Arriving,
    Fields,
    MessagePart,
    Reply,
    Unreadable,
    decode,
    encode,
    pack,
    server_error,
)
from relay.client.connection.parts import MessageParts
from relay.client.errors import Closed, Disconnected, ServerError
from relay.client.events import Event, Notice, Problem
from relay.client.reconnect_policy import (
    FINAL_ERRORS,
    ConnectionEnding,
    LastWord,
    ReconnectPolicy,
)
from relay.client.websocket import ABNORMAL_CLOSURE, NORMAL_CLOSURE, PROTOCOL_ERROR, WebSocket
from relay.concurrency.background import open_background
from relay.protocol.codec import MSGPACK_CODEC
from relay.protocol.messages import MAX_SAFE_INTEGER

UNUSED_STREAM = "relay-client:nothing"
"""A stream to which nobody subscribes."""


@define(eq=False)
class PendingRequest:
    """A request that has been given to the connection, made by `ClientConnection.ask`."""

    connection: ClientConnection
    asked_at: float = field(factory=trio.current_time)
    awaited: bool = False
    """Whether a task waits in `answer`."""
    taken: trio.Event = field(factory=trio.Event)
    """Set when that task has the answer."""
    _answer: Fields | ServerError | None = None
    _settled: trio.Event = field(factory=trio.Event)

    async def answer(self) -> Fields:
        """Wait for the relay's `success`; `ServerError` or `Disconnected`.

        Nothing behind the answer is read before the caller awaits something else.
        """
        self.awaited = True
        try:
            await self._settled.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self.awaited = False
            self.taken.set()
        if self._answer is None:
            raise self.connection.disconnected()
        if isinstance(self._answer, ServerError):
            raise self._answer
        return self._answer

    def settle(self, answer: Fields | ServerError | None) -> None:
        """Hand over the answer; None: there will be none."""
        self._answer = answer
        self._settled.set()


@define(eq=False, repr=False)
class ClientConnection:
    """Made by `open_connection`; ends with its block, or when `leave` is called.

    Iterate over it, in one task, for its events. The iteration ends with the connection.
    """

    socket: WebSocket
    _nursery: trio.Nursery
    _policy: ReconnectPolicy
    _clock: RelayClock
    ending: ConnectionEnding | None = None
    """How it ended, once it has."""
    bytes_queued: int = 0
    """Given to it to be sent, so far."""
    bytes_unsent: int = 0
    """Of these, those that wait here or that the kernel has not taken."""
    answered_at: float = field(factory=trio.current_time)
    """When the last answer came, or when the relay last said that what is sent arrives."""
    largest_message: int = 0
    """Bytes of the largest message of the relay, so far."""
    _parts: MessageParts = field(factory=MessageParts)
    _requests: dict[int, PendingRequest] = field(factory=dict)
    _last_id: int = 0
    _auth_id: int = 0
    _waiting: deque[str | bytes] = field(factory=deque)
    _acks: dict[str, str | bytes] = field(factory=dict)
    """By stream, the last one: it stands for all before."""
    _to_send: trio.Event = field(factory=trio.Event)
    _word: LastWord | None = None
    _polite: bool = True
    """Whether to say goodbye: whether the relay is there to hear it."""
    _reading: trio.CancelScope = field(factory=trio.CancelScope)
    _ended: trio.Event = field(factory=trio.Event)

    @property
    def packed(self) -> bool:
        """Whether it speaks MessagePack."""
        return self.socket.subprotocol == MSGPACK_CODEC.subprotocol

    @property
    def polite(self) -> bool:
        return self._polite

    def authenticate(self, token: str, **slow_link: object) -> PendingRequest:
        """Send the first message, or later renew the session.

        `slow_link` has fields of the first one that say how long messages are to come.
        """
        request = self.ask("auth", token=token, **slow_link)
        self._auth_id = self._last_id
        return request

    def ask(self, kind: str, **fields: object) -> PendingRequest:
        """Send a request, behind all that was given before; `Disconnected`."""
        self._last_id += 1
        request_id = self._last_id
        self.send_soon(kind, id=request_id, **fields)
        request = self._requests[request_id] = PendingRequest(self)
        return request

    def ping(self) -> PendingRequest:
        """Ask for any answer at all: to leave a stream that was never entered is cheap."""
        return self.ask("unsubscribe", stream_id=UNUSED_STREAM)

    def send_soon(self, kind: str, **fields: object) -> None:
        """Send a message without waiting; `Disconnected`."""
        if self.ending is not None:
            raise self.disconnected()
        message = self._encode(kind, **fields)
        self._waiting.append(message)
        self.bytes_unsent += len(message)
        self.bytes_queued += len(message)
        self._to_send.set()

    async def send(self, kind: str, **fields: object) -> None:
        """Send a message and wait until the kernel has it; `Disconnected`.

        Cancelled halfway, this breaks the connection.
        """
        if self.ending is None:
            with suppress(Closed):
                await self.socket.send(self._encode(kind, **fields))
                return
        await self._ended.wait()
        raise self.disconnected()

    def acknowledge(self, stream_id: str, seq: int, epoch: int) -> None:
        """Acknowledge a frame and those before it. An `epoch` of 0 is not known."""
        if self.ending is None:
            self._acks.pop(stream_id, None)
            known = {"epoch": epoch} if epoch else {}
            self._acks[stream_id] = self._encode("ack", stream_id=stream_id, seq=seq, **known)
            self._to_send.set()

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task that ends with the connection, if not before."""
        if self.ending is None:
            self._nursery.start_soon(self._work, work, args)

    def leave(self, reason: str, *, polite: bool = False, code: int = ABNORMAL_CLOSURE) -> None:
        """End the connection from this side; `polite`: with a Close that is heard.

        `code` is what the application is told.
        """
        if self.ending is None:
            self._polite = polite
            self._end(ConnectionEnding(None, reason, self._word, own_code=code))

    def disconnected(self) -> Disconnected:
        """What requests raise once the connection has ended."""
        assert self.ending is not None
        return self.ending.disconnected()

    def __aiter__(self) -> ClientConnection:
        return self

    async def __anext__(self) -> Event:
        if self.ending is None:
            with trio.CancelScope() as self._reading:
                try:
                    return await self._next_event()
                except Closed as closed:
                    self._end(ConnectionEnding(closed.code, closed.reason, self._word))
                except Unreadable as problem:
                    self.leave_unreadable(problem)
        raise StopAsyncIteration

    async def write(self) -> None:
        """Send what waits, until the connection ends; `open_connection` starts it."""
        try:
            while True:
                await self._to_send.wait()
                self._to_send = trio.Event()
                while self._acks or self._waiting:
                    # One of each stream at most: more may come for as long as these take, and
                    # nothing else would ever leave.
                    for stream_id in [*self._acks]:
                        if (ack := self._acks.pop(stream_id, None)) is not None:
                            await self.socket.send(ack)
                    if self._waiting:
                        message = self._waiting.popleft()
                        await self.socket.send(message)
                        self.bytes_unsent -= len(message)
        except Closed:
            pass  # the reader finds out why

    def close(self) -> None:
        """The block is over."""
        self._end(ConnectionEnding(NORMAL_CLOSURE, "the client left", self._word))

    def _end(self, ending: ConnectionEnding) -> None:
        if self.ending is not None:
            return
        self.ending = ending
        self._ended.set()
        self._reading.cancel()
        self._waiting.clear()
        self._acks.clear()
        for request in self._requests.values():
            request.settle(None)
        self._requests.clear()

    def leave_unreadable(self, problem: Unreadable) -> None:
        """End the connection: the relay sent what makes no sense."""
        self.leave(f"cannot read the relay: {problem}", code=PROTOCOL_ERROR)

    def _encode(self, kind: str, **fields: object) -> str | bytes:
        return pack(kind, **fields) if self.packed else encode(kind, **fields)

    async def _work(self, work: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await work(*args)
        except Disconnected:
            pass  # the reader finds out why
        except Unreadable as problem:
            self.leave_unreadable(problem)

    async def _next_event(self) -> Event:
        while True:
            received = await self.socket.receive()
            message = decode(received, packed=self.packed)
            size = len(received) * (message.count if isinstance(message, MessagePart) else 1)
            self.largest_message = max(self.largest_message, size)
            if isinstance(message, MessagePart):
                whole = self._parts.join(message)
                if whole is None:
                    continue
                message = decode(whole, packed=self.packed)
            if isinstance(message, Arriving):
                self.answered_at = trio.current_time()
            if message is None or isinstance(message, MessagePart | Arriving):
                continue
            self._word = None
            match message:
                case Reply():
                    await self._settle(message)
                    continue
                case Problem():
                    self._note_word(server_error(message))
                case Notice():
                    self._note_word(message)
            return message

    async def _settle(self, reply: Reply) -> None:
        """Give an answer to the task that waits for it, and wait until it is noted there."""
        request = self._requests.pop(reply.request_id, None)
        error = reply.answer if isinstance(reply.answer, ServerError) else None
        if error is not None:
            # The refusal of a request says nothing about the connection, except that of `auth`.
            refusal = request is not None and reply.request_id != self._auth_id
            if not refusal or error.code in FINAL_ERRORS:
                self._note_word(error)
        if request is None:
            return
        self.answered_at = trio.current_time()
        if not isinstance(reply.answer, ServerError):
            stamp = reply.answer.get("timestamp")
            if isinstance(stamp, int | float) and 0 <= stamp < MAX_SAFE_INTEGER:
                self._clock.observe(stamp, self.answered_at - request.asked_at)
        request.settle(reply.answer)
        if request.awaited:
            await request.taken.wait()

    def _note_word(self, word: LastWord) -> None:
        self._word = word
        if isinstance(word, ServerError) and word.code in FINAL_ERRORS:
            self.start(self._expect_close, word)

    async def _expect_close(self, word: ServerError) -> None:
        await trio.sleep(self._policy.close_timeout)
        self.leave(word.message)


@asynccontextmanager
async def open_connection(
    socket: WebSocket,
    policy: ReconnectPolicy | None = None,
    clock: RelayClock | None = None,
) -> AsyncIterator[ClientConnection]:
    """A connection over an open WebSocket, with a nursery for the tasks that end with it."""
    async with open_background() as nursery:
        connection = ClientConnection(
            socket, nursery, policy or ReconnectPolicy(), clock or RelayClock()
        )
        nursery.start_soon(connection.write)
        try:
            yield connection
        finally:
            connection.close()
    if not connection.polite:
        await socket.abort()  # to wait for an answer to our Close would be in vain
