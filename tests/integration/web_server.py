"""A small HTTP server on loopback that does what a test says, rude things among them."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import trio
from attrs import define, field, frozen


@frozen
class Request:
    """What was asked."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: value for name, (value, *_) in parse_qs(self.body.decode()).items()}


Answer = Callable[[Request, trio.abc.Stream], Awaitable[None]]


@define(eq=False)
class WebServer:
    """Answers on one port, also when it was away in between."""

    _nursery: trio.Nursery
    _tls: ssl.SSLContext | None
    answer: Answer
    requests: list[Request] = field(factory=list)
    port: int = 0
    _life: trio.CancelScope = field(factory=trio.CancelScope)

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._life = trio.CancelScope()
        self._nursery.start_soon(self._serve, listeners)

    def stop(self) -> None:
        """From now on nothing listens on the port."""
        self._life.cancel()

    async def _serve(self, listeners: list[trio.SocketListener]) -> None:
        with self._life:
            await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.abc.Stream) -> None:
        try:
            if self._tls is not None:
                stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
            async with stream:
                request = await _read(stream)
                self.requests.append(request)
                await self.answer(request, stream)
        except trio.BrokenResourceError:
            pass  # whoever asked is gone


async def _read(stream: trio.abc.Stream) -> Request:
    read = b""
    while b"\r\n\r\n" not in read:
        read += await _more(stream)
    head, _, body = read.partition(b"\r\n\r\n")
    line, *rest = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await _more(stream)
    return Request(line, headers, body)


async def _more(stream: trio.abc.Stream) -> bytes:
    part = await stream.receive_some()
    if not part:
        raise trio.BrokenResourceError
    return bytes(part)


@asynccontextmanager
async def open_web_server(
    answer: Answer, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[WebServer]:
    """A server that answers until the block ends."""
    async with trio.open_nursery() as nursery:
        server = WebServer(nursery, tls, answer)
        await server.start()
        yield server
        nursery.cancel_scope.cancel()


def raw(*parts: bytes) -> Answer:
    """These bytes, whatever they are."""

    async def answer(_request: Request, stream: trio.abc.Stream) -> None:
        for part in parts:
            await stream.send_all(part)

    return answer


def says(content: Any, status: str = "200 OK", *headers: str) -> Answer:
    """A proper response; bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return raw("\r\n".join(lines).encode() + b"\r\n\r\n", body)


def by_form(content: Callable[[dict[str, str]], Any]) -> Answer:
    """A proper response that depends on what was sent."""

    async def answer(request: Request, stream: trio.abc.Stream) -> None:
        await says(content(request.form))(request, stream)

    return answer


async def silence(_request: Request, stream: trio.abc.Stream) -> None:
    """No answer, until whoever asks goes away."""
    await stream.receive_some()


async def drip(_request: Request, stream: trio.abc.Stream) -> None:
    """An answer without end, a letter at a time."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b" ")
        await trio.sleep(0.01)


async def flood(_request: Request, stream: trio.abc.Stream) -> None:
    """An answer without end, as fast as it goes."""
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send_all(b" " * 65536)
