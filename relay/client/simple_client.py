"""A client with a single connection, for scripts and tests. It does not reconnect.

async with connect("ws://localhost:3000", token) as client:
    await client.subscribe("front-door")
    async for event in client:
        ...
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import trio
from attrs import define, field

from relay.client.connection.connection import ClientConnection, open_connection
from relay.client.connection.messages import read
from relay.client.dial import Wrap, dial, with_path
from relay.client.events import (
    AlertAccepted,
    Authenticated,
    Event,
    Frame,
    Registered,
    Status,
    Subscribed,
    Unsubscribed,
)
from relay.client.websocket import NORMAL_CLOSURE, WebSocket
from relay.concurrency.background import open_background
from relay.protocol.messages import Layer, now_ms

T = TypeVar("T")

TOO_SLOW = 4002
DEFAULT_WINDOW = 8
"""Frames that may be in flight to a viewer. At 30 frames a second, no frame is lost if a frame and
its acknowledgement together take less than 8/30 s, as on a slow mobile network; and proxies and
radios can hold back 8 frames, not megabytes."""
MAX_UNREAD_EVENTS = 64
"""Of each stream, at most one of these is a frame: the newest. Beyond that the client stops
reading, and the relay sees a slow network."""


@asynccontextmanager
async def connect(
    url: str,
    token: str,
    *,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[SimpleClient]:
    """Connect and authenticate; `DialFailed`, `ServerError`, `Disconnected`.

    `url` needs no path. The options are those of `dial`.
    """
    async with (
        dial(with_path(url), receive_buffer=receive_buffer, wrap=wrap, tls=tls) as socket,
        open_client(socket, token) as client,
    ):
        yield client


@asynccontextmanager
async def open_client(socket: WebSocket, token: str) -> AsyncIterator[SimpleClient]:
    """`connect` over a WebSocket that is already open."""
    async with open_connection(socket) as connection, open_background() as nursery:
        client = SimpleClient(connection)
        nursery.start_soon(client.run)
        await client.authenticate(token)
        yield client


@define(eq=False, repr=False)
class SimpleClient:
    """An authenticated connection, made by `connect`; iterate over it for its events.

    Requests return the relay's answer or raise `ServerError`; all raise `Disconnected` once the
    connection has ended. Iteration just ends if the connection was closed normally.
    """

    _connection: ClientConnection
    session: Authenticated = field(factory=Authenticated)
    _epochs: dict[str, int] = field(factory=dict)
    """The epoch of each stream with a window; 0 as long as it is not known."""
    _inlet: trio.MemorySendChannel[Event] = field(init=False)
    _events: trio.MemoryReceiveChannel[Event] = field(init=False)
    _requests: int = 0
    """Tasks that cannot go on before the reader does."""
    _delivery: trio.CancelScope = field(factory=trio.CancelScope)
    """Around the reader while it waits for the application to take events."""

    def __attrs_post_init__(self) -> None:
        self._inlet, self._events = trio.open_memory_channel[Event](MAX_UNREAD_EVENTS)

    async def authenticate(self, token: str) -> Authenticated:
        """Authenticate, or renew the session of a live connection."""
        with self._reading_on():
            answer = await self._connection.authenticate(token).answer()
        self.session = read(Authenticated, answer)
        return self.session

    async def register(
        self,
        stream_id: str | None = None,
        *,
        produces: Collection[str] = ("video-frame",),
        consumes: Collection[str] = ("alert",),
        metadata: Mapping[str, Any] | None = None,
        layers: Sequence[Layer] | None = None,
    ) -> Registered:
        """Become the producer of this stream, or of a new one.

        With `layers`, the cheapest first, each `Status` says which of them somebody needs; the
        answer repeats them, unless the relay knows of none: then send the largest alone, without
        `layer`.
        """
        return await self._request(
            Registered,
            "register",
            stream_id=stream_id,
            produces=list(produces),
            consumes=list(consumes),
            metadata=metadata,
            layers=layers,
        )

    async def subscribe(
        self,
        stream_id: str,
        *,
        consumes: Collection[str] = ("video-frame", "alert"),
        window: int | None = DEFAULT_WINDOW,
        max_width: int | None = None,
        layer: str | None = None,
    ) -> Subscribed:
        """Watch a stream: the largest layer that the link carries, no wider than `max_width`
        pixels, or this `layer`.

        `window` is the number of frames that may be unacknowledged; this client acknowledges each
        frame when it has arrived. None means no limit: all buffers on the way may fill up.
        """
        if window is None:
            self._epochs.pop(stream_id, None)
        else:
            self._epochs.setdefault(stream_id, 0)
        return await self._request(
            Subscribed,
            "subscribe",
            stream_id=stream_id,
            consumes=list(consumes),
            window=window,
            max_width=max_width,
            layer=layer,
        )

    async def unsubscribe(self, stream_id: str) -> Unsubscribed:
        answer = await self._request(Unsubscribed, "unsubscribe", stream_id=stream_id)
        self._epochs.pop(stream_id, None)
        return answer

    async def alert(
        self,
        stream_id: str,
        message: str,
        *,
        severity: str = "medium",
        metadata: Mapping[str, Any] | None = None,
        timestamp: float | None = None,
        alert_key: str | None = None,
        frame: bool | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> AlertAccepted:
        """Raise an alert; returns when it is stored. `timestamp` is in ms, now by default. With
        `frame`, the picture of that moment is kept with it. `traceparent` and `tracestate`, of W3C
        Trace Context, are the span that the relay's trace of it continues.

        After `Disconnected`, it may or may not have been stored: raise it again with the same
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
            frame=frame,
            traceparent=traceparent,
            tracestate=tracestate,
        )

    async def send_frame(
        self,
        data: bytes,
        *,
        stream_id: str | None = None,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        discardable: bool | None = None,
        layer: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a frame of the registered stream; returns once the kernel has it.

        There is no answer: a refusal comes as a `Problem` event. `timestamp` is in ms, now by
        default; frames of one picture in several layers have the same. Cancelled halfway, this
        breaks the connection.
        """
        with self._reading_on():
            await self._connection.send(
                "video-frame",
                data=data,
                stream_id=stream_id,
                timestamp=now_ms() if timestamp is None else timestamp,
                keyframe=keyframe,
                discardable=discardable,
                layer=layer,
                metadata=metadata,
            )

    def __aiter__(self) -> SimpleClient:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            end = self._connection.disconnected()
        if end.code == NORMAL_CLOSURE:
            raise StopAsyncIteration
        raise end

    async def run(self) -> None:
        """Read until the connection ends; `connect` starts it."""
        with self._inlet:
            async for event in self._connection:
                self._acknowledge(event)
                await self._deliver(event)

    async def _request(self, kind: type[T], name: str, **fields: object) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._reading_on():
            answer = await self._connection.ask(name, **fields).answer()
        return read(kind, answer)

    def _acknowledge(self, event: Event) -> None:
        epoch = self._epochs.get(event.stream_id) if isinstance(event, Frame | Status) else None
        if epoch is None:
            return
        if isinstance(event, Frame):
            self._connection.acknowledge(event.stream_id, event.seq, epoch)
        elif isinstance(event, Status) and event.epoch:
            # At the end of a stream it is 0, and frames that were sent before may still come.
            self._epochs[event.stream_id] = event.epoch

    async def _deliver(self, event: Event) -> None:
        if isinstance(event, Frame):
            self._forget_frame(event.stream_id)
        while not self._requests:
            with trio.CancelScope() as self._delivery:
                await self._inlet.send(event)
                return
        if self._is_full() and not self._forget_frame():
            reason = f"{MAX_UNREAD_EVENTS} events lie unread before an answer"
            self._connection.leave(reason, code=TOO_SLOW, polite=True)
        else:
            self._inlet.send_nowait(event)

    @contextmanager
    def _reading_on(self) -> Iterator[None]:
        """Read on meanwhile, also when the application leaves events unread: the answer that the
        block waits for is behind them."""
        self._requests += 1
        self._delivery.cancel()
        try:
            yield
        finally:
            self._requests -= 1

    def _is_full(self) -> bool:
        return self._events.statistics().current_buffer_used == MAX_UNREAD_EVENTS

    def _forget_frame(self, stream_id: str | None = None) -> bool:
        """Remove the oldest unread frame (of this stream); returns whether there was one."""
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
