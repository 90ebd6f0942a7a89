"""One connection to the relay: authenticate, ask, send frames, receive events. Floor 2.

For tests and measurements, which want to see how it ends; relay_client.py comes back by itself.

async with connect("ws://localhost:3000", token) as client:
    await client.subscribe("front-door")
    async for event in client:
        ...
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio
from attrs import define, field

from relay.client.errors import Disconnected, ServerError
from relay.client.events import (
    AlertAccepted,
    Authenticated,
    Event,
    Frame,
    Problem,
    Registered,
    Subscribed,
    Unsubscribed,
)
from relay.client.messages import Fields, Reply, Unreadable, decode, encode, read, server_error
from relay.client.receipts import WINDOW, Receipts
from relay.protocol.messages import now_ms
from relay.transport.dial import Closed, WebSocket, Wrap, dial, open_background

T = TypeVar("T")

DEFAULT_PATH = "/streams/subscribe"
NORMAL = 1000
PROTOCOL_ERROR = 1002
TOO_SLOW = 4002
UNREAD_EVENTS = 64
"""So many events may lie unread, of each stream one frame among them: the newest. After that the
client stops reading, and the relay sees a slow network."""


@asynccontextmanager
async def connect(
    url: str,
    token: str,
    *,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """Connect and authenticate; `DialFailed`, `ServerError`, `Disconnected`.

    `url` needs no path. The options are those of `dial`.
    """
    async with (
        dial(with_path(url), receive_buffer=receive_buffer, wrap=wrap, tls=tls) as socket,
        open_client(socket, token) as client,
    ):
        yield client


@asynccontextmanager
async def open_client(socket: WebSocket, token: str) -> AsyncIterator[Client]:
    """`connect` for a WebSocket that is open already."""
    async with open_background() as nursery:
        client = Client(socket)
        nursery.start_soon(client.run)
        nursery.start_soon(client.receipts.run)
        await client.authenticate(token)
        yield client


@define(eq=False)
class Client:
    """An authenticated connection, made by `connect`; iterate over it for its events.

    Requests return the server's reply or raise `ServerError`; all raise `Disconnected` once the
    connection has ended. Iteration just ends if that was normal.
    """

    _socket: WebSocket
    session: Authenticated = field(factory=Authenticated)
    receipts: Receipts = field(init=False)
    _last_id: int = 0
    _answers: dict[int, trio.MemorySendChannel[Fields | ServerError]] = field(factory=dict)
    _inlet: trio.MemorySendChannel[Event] = field(init=False)
    _events: trio.MemoryReceiveChannel[Event] = field(init=False)
    _asking: int = 0
    """Tasks that cannot go on before the reader does."""
    _patience: trio.CancelScope = field(factory=trio.CancelScope)
    """Around the reader while it waits for somebody to take events."""
    _last_error: ServerError | None = None
    _closed: Closed | None = None
    _ended: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._inlet, self._events = trio.open_memory_channel[Event](UNREAD_EVENTS)
        self.receipts = Receipts(self._socket.send)

    async def authenticate(self, token: str) -> Authenticated:
        """Also renews the session of a live connection."""
        self.session = await self._request(Authenticated, "auth", token=token)
        return self.session

    async def register(
        self,
        stream_id: str | None = None,
        *,
        produces: Collection[str] = ("video-frame",),
        consumes: Collection[str] = ("alert",),
        metadata: Mapping[str, Any] | None = None,
    ) -> Registered:
        """Become the producer of this stream, or of a new one."""
        return await self._request(
            Registered,
            "register",
            stream_id=stream_id,
            produces=list(produces),
            consumes=list(consumes),
            metadata=metadata,
        )

    async def subscribe(
        self,
        stream_id: str,
        *,
        consumes: Collection[str] = ("video-frame", "alert"),
        window: int | None = WINDOW,
    ) -> Subscribed:
        """Watch a stream. So many frames may be under way unacknowledged; this client acknowledges
        each when it has come. None: as many as all buffers on the way hold."""
        if window is None:
            self.receipts.end(stream_id)
        else:
            self.receipts.begin(stream_id)
        return await self._request(
            Subscribed, "subscribe", stream_id=stream_id, consumes=list(consumes), window=window
        )

    async def unsubscribe(self, stream_id: str) -> Unsubscribed:
        reply = await self._request(Unsubscribed, "unsubscribe", stream_id=stream_id)
        self.receipts.end(stream_id)
        return reply

    async def alert(
        self,
        stream_id: str,
        message: str,
        *,
        severity: str = "medium",
        metadata: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        alert_key: str | None = None,
    ) -> AlertAccepted:
        """Raise an alert; when this returns, it is stored. `timestamp` is in ms, now by default.

        After `Disconnected` nobody knows whether it was stored: ask again with the same
        `alert_key`, and it is not delivered twice.
        """
        return await self._request(
            AlertAccepted,
            "alert",
            stream_id=stream_id,
            severity=severity,
            message=message,
            metadata=metadata,
            timestamp=now_ms() if timestamp is None else timestamp,
            alert_key=alert_key,
        )

    async def send_frame(
        self,
        data: bytes,
        *,
        stream_id: str | None = None,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a frame of the registered stream; returns once the kernel has it.

        There is no reply: a refusal comes as a `Problem` event. `timestamp` is in ms, now by
        default. Cancelled halfway, this breaks the connection.
        """
        message = encode(
            "video-frame",
            data=data,
            stream_id=stream_id,
            timestamp=now_ms() if timestamp is None else timestamp,
            keyframe=keyframe,
            metadata=metadata,
        )
        await self._send(message)

    def __aiter__(self) -> Client:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            end = self._end()
        if end.code == NORMAL:
            raise StopAsyncIteration
        raise end

    async def run(self) -> None:
        """Read until the connection ends; `connect` starts it."""
        try:
            while True:
                await self._take(decode(await self._socket.receive()))
        except Closed as closed:
            self._closed = closed
        except Unreadable as problem:
            self._closed = Closed(PROTOCOL_ERROR, f"cannot read the server: {problem}")
        finally:
            self._inlet.close()
            for answer in self._answers.values():
                answer.close()
            self._ended.set()

    async def _request(self, kind: type[T], name: str, **fields: object) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._last_id += 1
        request_id = self._last_id
        send_answer, wait_answer = trio.open_memory_channel[Fields | ServerError](1)
        with send_answer, wait_answer, self._hurry():
            self._answers[request_id] = send_answer
            try:
                await self._send(encode(name, id=request_id, **fields))
                answer = await wait_answer.receive()
            except trio.EndOfChannel:
                raise self._end() from None
            finally:
                self._answers.pop(request_id, None)
        if isinstance(answer, ServerError):
            raise answer
        return read(kind, answer)

    async def _send(self, message: str) -> None:
        if self._closed is None:
            try:
                return await self._socket.send(message)
            except Closed:
                pass
        with self._hurry():
            await self._ended.wait()
        raise self._end()

    def _end(self) -> Disconnected:
        closed = self._closed or Closed(NORMAL, "the client left")
        return Disconnected(closed.code, closed.reason, self._last_error)

    async def _take(self, message: Event | Reply | None) -> None:
        self._last_error = None
        if message is not None and not isinstance(message, Reply):
            self.receipts.take(message)
        if isinstance(message, Reply):
            if isinstance(message.answer, ServerError):
                self._last_error = message.answer
            if answer := self._answers.pop(message.request_id, None):
                answer.send_nowait(message.answer)
        elif isinstance(message, Problem):
            self._last_error = server_error(message)
            await self._deliver(message)
        elif message is not None:
            await self._deliver(message)

    async def _deliver(self, event: Event) -> None:
        if isinstance(event, Frame):
            self._forget_frame(event.stream_id)
        while not self._asking:
            with trio.CancelScope() as self._patience:
                await self._inlet.send(event)
                return
        if self._is_full() and not self._forget_frame():
            raise Closed(TOO_SLOW, f"{UNREAD_EVENTS} events lie unread before a reply")
        self._inlet.send_nowait(event)

    @contextmanager
    def _hurry(self) -> Iterator[None]:
        """What this waits for comes behind events that perhaps nobody takes meanwhile."""
        self._asking += 1
        self._patience.cancel()
        try:
            yield
        finally:
            self._asking -= 1

    def _is_full(self) -> bool:
        return self._events.statistics().current_buffer_used == UNREAD_EVENTS

    def _forget_frame(self, stream_id: str | None = None) -> bool:
        """Take the oldest unread frame (of this stream) away, if there is one."""
        unread = [
            self._events.receive_nowait()
            for _ in range(self._events.statistics().current_buffer_used)
        ]
        forgotten = next(
            (e for e in unread if isinstance(e, Frame) and stream_id in {None, e.stream_id}), None
        )
        for event in unread:
            if event is not forgotten:
                self._inlet.send_nowait(event)
        return forgotten is not None


def with_path(url: str) -> str:
    """The URL, with the default path if it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # `dial` says what is wrong with it
    return url if parts.path.strip("/") else parts._replace(path=DEFAULT_PATH).geturl()
