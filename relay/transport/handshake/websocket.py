"""The handshake of a WebSocket.

A usual request, as nearly all clients write it, is accepted here. trio-websocket reads all others,
and the usual ones that are refused. When it accepts one, it hands over: its reader is cancelled
after the 101, and what follows is read by the stream alone. It is shown the request head and
nothing else.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import cast
from urllib.parse import parse_qs

import trio
import trio_websocket
from attrs import define, field, frozen

from relay.transport import wire
from relay.transport.handshake.head import plain_upgrade
from relay.transport.handshake.upgrade_request import UpgradeRequest
from relay.transport.link import Buffer
from relay.transport.stream import FrameStream

_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextmanager
def _as_trio_error() -> Iterator[None]:
    try:
        yield
    except trio_websocket.ConnectionClosed as problem:
        raise trio.BrokenResourceError from problem


@frozen
class Handshake(ABC):
    """A request for a WebSocket, which is accepted or refused once."""

    _target: str
    subprotocols: tuple[str, ...]

    @property
    def path(self) -> str:
        return self._target.partition("?")[0]

    @property
    def query_names(self) -> set[str]:
        """The names in the query string; its values may be secret."""
        query = self._target.partition("?")[2].replace(";", "&")
        return set(parse_qs(query, keep_blank_values=True)) if query else set()

    @abstractmethod
    async def accept(self, subprotocol: str | None) -> None:
        """Answer that the WebSocket is open."""

    @abstractmethod
    async def refuse(self, status: int, why: str) -> None:
        """Answer with an HTTP error and a line of text."""


async def read_handshake(nursery: trio.Nursery, stream: FrameStream, head: bytes) -> Handshake:
    """Read an upgrade request from its head; trio-websocket's reader works in the nursery.

    Never returns for an invalid request: the stream is closed, which calls its `on_end`.
    """
    request = UpgradeRequest.parse(head)
    if request is None:
        return await _read_by_library(nursery, stream, head)
    by_library = partial(_read_by_library, nursery, stream, head)
    return _UsualHandshake(request.target, request.subprotocols, request, stream, by_library)


@frozen
class _UsualHandshake(Handshake):
    """The handshake for a usual request: accepted here, or refused by trio-websocket."""

    _request: UpgradeRequest
    _stream: FrameStream
    _by_library: Callable[[], Awaitable[Handshake]]

    async def accept(self, subprotocol: str | None) -> None:
        await self._stream.send_first(self._request.acceptance(subprotocol))

    async def refuse(self, status: int, why: str) -> None:
        handshake = await self._by_library()
        await handshake.refuse(status, why)


@frozen
class _LibraryHandshake(Handshake):
    """The handshake for any other request, by trio-websocket."""

    _request: trio_websocket.WebSocketRequest
    _reader: _Reader

    async def accept(self, subprotocol: str | None) -> None:
        """Answer, and take over from trio-websocket."""
        with _as_trio_error():
            await self._request.accept(subprotocol=subprotocol)
        self._reader.scope.cancel()

    async def refuse(self, status: int, why: str) -> None:
        headers = [(b"Content-Type", b"text/plain; charset=utf-8")]
        with _as_trio_error():
            await self._request.reject(status, extra_headers=headers, body=why.encode() + b"\n")


async def _read_by_library(nursery: trio.Nursery, stream: FrameStream, head: bytes) -> Handshake:
    reader = _Reader(nursery, stream)
    request = await trio_websocket.wrap_server_stream(
        cast("trio.Nursery", reader), _HandshakeStream(stream, plain_upgrade(head))
    )
    return _LibraryHandshake(request.path, request.proposed_subprotocols, request, reader)


@define(eq=False, repr=False)
class _HandshakeStream(trio.abc.Stream):
    """What trio-websocket sees of a connection: the request head, and a way to answer."""

    _stream: FrameStream
    _head: bytes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 (of Stream)
        if not self._head:
            await trio.sleep_forever()  # nothing may come before the answer
        head, self._head = self._head, b""
        return head

    async def send_all(self, data: Buffer) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@define(eq=False, repr=False)
class _Reader:
    """Starts trio-websocket's reader, and handles the errors that a peer can cause in it."""

    _nursery: trio.Nursery
    _stream: FrameStream
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    """Around the reader."""

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            with self.scope:
                await reader()
        except trio_websocket.ConnectionClosed:
            self._stream.abort()  # the response to an invalid request could not be written
        except UnicodeError:  # from a header
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(_BAD_REQUEST)
            await self._stream.aclose()


def close_frame(code: int, reason: str) -> bytes:
    """Build a Close as a server sends it."""
    return wire.frame(wire.CLOSE, struct.pack("!H", code), reason.encode())
