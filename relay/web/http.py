"""Runs the HTTP application on one connection, by Hypercorn's Trio server. Floor 4.

Hypercorn's `TCPServer` is half-private, so its version is pinned. It writes under a shield without
a deadline: the stream's own stall deadline bounds that.
"""

from __future__ import annotations

import re
from typing import Any, cast

import trio
from attrs import define, field
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from relay.guard.address import ClientAddress
from relay.transport.stream import FrameStream

DEADLINE = 30.0
"""Seconds for one request and its answer."""

_HTTP2 = re.compile(rb"\APRI |^upgrade\s*:\s*h2c", re.IGNORECASE | re.MULTILINE)
_HTTP1_ONLY = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def asks_for_http2(head: bytes) -> bool:
    """Whether Hypercorn would change over to HTTP/2, with many requests on one connection."""
    return _HTTP2.search(head) is not None


@define(eq=False)
class HttpServer:
    """Answers one plain HTTP request a connection."""

    _app: Any
    _config: Config = field(init=False)
    _context: WorkerContext = field(factory=lambda: WorkerContext(None))

    def __attrs_post_init__(self) -> None:
        self._config = Config()
        self._config.h11_max_incomplete_size = 16 * 1024
        self._config.keep_alive_max_requests = 1
        self._config.include_server_header = False
        self._config.accesslog = None
        self._config.errorlog = None

    async def serve(self, stream: FrameStream, address: ClientAddress) -> None:
        """Read a request and answer it; returns when the connection is done with.

        The application finds the client's address in the state of its request.
        """
        with trio.move_on_after(DEADLINE):
            if asks_for_http2(await stream.read_head()):
                await stream.send_all(_HTTP1_ONLY)
                return
            await TCPServer(
                ASGIWrapper(self._app),
                self._config,
                self._context,
                {"address": address},
                cast("Any", _Encrypted(stream) if stream.encrypted else stream),
            )


@define(eq=False)
class _Encrypted:
    """A stream that did its TLS handshake already, in the shape of `trio.SSLStream`."""

    _stream: FrameStream

    @property
    def transport_stream(self) -> FrameStream:
        return self._stream

    async def do_handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def selected_alpn_protocol(self) -> str:
        return "http/1.1"

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        await self._stream.aclose()
