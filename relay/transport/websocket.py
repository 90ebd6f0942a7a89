"""The handshake and keep-alive of a WebSocket, by trio-websocket.

trio-websocket reads and answers the request, the peer's pings and its Close. Data messages never
pass through it. We write our own Close when it has stopped: it would fail on a ping that it reads
after its own Close, and wait without end behind a stalled write.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast
from urllib.parse import parse_qs

import trio
import trio_websocket
from attrs import define, field, frozen

from relay.transport import wire
from relay.transport.framing.frame_parser import IncompleteMessage
from relay.transport.stream import FrameStream

MIN_PROGRESS_BYTES = 1024
"""A message that grows by less is not being sent, only held."""

_PING = wire.frame(wire.PING)
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def _as_trio_error() -> Iterator[None]:
    try:
        yield
    except trio_websocket.ConnectionClosed as problem:
        raise trio.BrokenResourceError from problem


@frozen
class Handshake:
    """A request for a WebSocket, which is accepted or refused once."""

    _request: trio_websocket.WebSocketRequest

    @property
    def path(self) -> str:
        return self._request.path.partition("?")[0]

    @property
    def query_names(self) -> set[str]:
        """The names in the query string; its values may be secret."""
        query = self._request.path.partition("?")[2].replace(";", "&")
        return set(parse_qs(query, keep_blank_values=True))

    @property
    def subprotocols(self) -> tuple[str, ...]:
        return self._request.proposed_subprotocols

    async def accept(self, subprotocol: str | None) -> None:
        with _as_trio_error():
            await self._request.accept(subprotocol=subprotocol)

    async def refuse(self, status: int, why: str) -> None:
        """Answer with an HTTP error and a line of text."""
        headers = [(b"Content-Type", b"text/plain; charset=utf-8")]
        with _as_trio_error():
            await self._request.reject(status, extra_headers=headers, body=why.encode() + b"\n")


async def read_handshake(nursery: trio.Nursery, stream: FrameStream) -> Handshake:
    """Read an upgrade request, whose head the stream holds; trio-websocket goes on in the nursery.

    Never returns for an invalid request: the stream is closed, which calls its `on_end`.
    """
    reader = _Reader(nursery, stream)
    request = await trio_websocket.wrap_server_stream(cast("trio.Nursery", reader), stream)
    reader.shaking_hands = False
    return Handshake(request)


@define(eq=False)
class _Reader:
    """Starts trio-websocket's reader, and handles the errors that a peer can cause in it."""

    _nursery: trio.Nursery
    _stream: FrameStream
    shaking_hands: bool = True

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except trio_websocket.ConnectionClosed:
            self._stream.abort()  # the response to an invalid request could not be written
        except UnicodeError:  # from a header
            if not self.shaking_hands:
                raise
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(_BAD_REQUEST)
            await self._stream.aclose()


async def keep_alive(stream: FrameStream, *, every: float, idle: float) -> None:
    """Ping every `every` seconds. Returns when for `idle` seconds the peer sent no byte and made no
    room for a waiting frame, or when a message that it has begun made no progress.

    Any byte counts as a sign of life, since a pong may be late behind a large frame.
    """
    next_ping = trio.current_time() + every
    message = _MessageProgress(stream)
    while True:
        now = trio.current_time()
        silent_until = max(stream.last_received, stream.outlet.last_progress) + idle
        silent_until = min(silent_until, message.last_made(now) + idle)
        if now >= silent_until:
            return
        if now >= next_ping:
            next_ping = now + every
            with trio.move_on_at(silent_until):
                await stream.outlet.send(_PING)
        await trio.sleep_until(min(next_ping, silent_until))


@define(eq=False)
class _MessageProgress:
    """When the message that a peer has begun last made progress, as far as was looked."""

    _stream: FrameStream
    _seen: IncompleteMessage = field(factory=lambda: IncompleteMessage(0, 0))
    _time: float = 0.0

    def last_made(self, now: float) -> float:
        """By Trio's clock; now if there is no such message."""
        message = self._stream.incomplete_message
        if message is None:
            return now
        grown = message.arrived - self._seen.arrived
        if message.number != self._seen.number or grown >= MIN_PROGRESS_BYTES:
            self._seen, self._time = message, now
        return self._time


def close_frame(code: int, reason: str) -> bytes:
    """Build a Close as a server sends it."""
    return wire.frame(wire.CLOSE, struct.pack("!H", code), reason.encode())
