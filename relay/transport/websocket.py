"""The server's side of a WebSocket: handshake and keeping alive, by trio-websocket. Floor 1.

trio-websocket reads the request and answers it, answers pings, and answers the peer's Close. Data
messages never pass through it. A Close of ours is written when it has stopped: it would fail on a
ping that it reads after its own Close, and wait without end behind a stalled write.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast
from urllib.parse import parse_qs

import trio
import trio_websocket
from attrs import define, frozen

from relay.transport import wire
from relay.transport.stream import FrameStream

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
    """A request for a WebSocket, to be accepted or refused once."""

    _request: trio_websocket.WebSocketRequest

    @property
    def path(self) -> str:
        return self._request.path.partition("?")[0]

    @property
    def query_names(self) -> set[str]:
        """The names in the query string; its values are nobody's business."""
        return set(parse_qs(self._request.path.partition("?")[2], keep_blank_values=True))

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
    """Read an upgrade request, whose head the stream has; trio-websocket works on in the nursery.

    Never returns when the request is broken: the stream is closed then, and tells by `on_end`.
    """
    reader = _Reader(nursery, stream)
    request = await trio_websocket.wrap_server_stream(cast("trio.Nursery", reader), stream)
    reader.shaking_hands = False
    return Handshake(request)


@define(eq=False)
class _Reader:
    """Where trio-websocket starts its reader. What a peer can make that fail with ends here."""

    _nursery: trio.Nursery
    _stream: FrameStream
    shaking_hands: bool = True

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except trio_websocket.ConnectionClosed:
            self._stream.abort()  # the answer to a broken request could not be written
        except UnicodeError:  # from a header
            if not self.shaking_hands:
                raise
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(_BAD_REQUEST)
            await self._stream.aclose()


async def keep_alive(stream: FrameStream, *, every: float, idle: float) -> None:
    """Ping every so many seconds; returns when for `idle` seconds no byte came from the peer and it
    made no room for a frame that waits. Our own pings do not count as life.

    The pongs need no answering to: any byte will do, and a pong may be late behind a big frame.
    """
    next_ping = trio.current_time() + every
    while True:
        now = trio.current_time()
        silent_until = max(stream.last_received, stream.outlet.last_progress) + idle
        if now >= silent_until:
            return
        if now >= next_ping:
            next_ping = now + every
            with trio.move_on_at(silent_until):
                await stream.outlet.send(_PING)
        await trio.sleep_until(min(next_ping, silent_until))


def close_frame(code: int, reason: str) -> bytes:
    """A Close as a server sends it."""
    return wire.frame(wire.CLOSE, struct.pack("!H", code), reason.encode())
