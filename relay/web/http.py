"""An ASGI server for plain HTTP on h11: one request per connection.

Bytes after the request are ignored, and read to their end before the connection is closed. When the
client disconnects, the application is cancelled. A client that only closes its sending half still
gets its answer, unless that is streamed. An application may take the connection over for the body
of its answer: see `HAND_OVER`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import h11
import trio
from attrs import define, field, frozen

from relay.connection.http_request import HttpRequest
from relay.guard.client_address import ClientAddress
from relay.model.base_path import path_below
from relay.transport.budget import Budget
from relay.transport.handshake.head import with_path
from relay.transport.stream import MAX_HEAD_BYTES, FrameStream

if TYPE_CHECKING:  # the first request loads it
    from starlette.types import ASGIApp, Message, Scope

REQUEST_TIMEOUT = 30.0
"""Seconds for a request until its answer begins; then for each slice of it."""
WRITE_SLICE_BYTES = 64 * 1024
MIN_READ_RATE = 4096
"""Bytes a second that a client reads at least, after the first `REQUEST_TIMEOUT`."""
DEFAULT_UNSENT_BYTES = 64 << 20
HTTP_READ_BYTES = 16 * 1024
HAND_OVER = "relay.response.hand_over"
"""The type of an ASGI message behind the head of a response, in place of its body: `write` is
called to write that to the outlet of the connection, as the frames of a WebSocket are written."""
DISCONNECTED = (trio.BrokenResourceError, trio.ClosedResourceError)

Headers = list[tuple[bytes, bytes]]

_HTTP2 = re.compile(rb"\APRI |^upgrade\s*:\s*h2c", re.IGNORECASE | re.MULTILINE)
_HTTP1_ONLY = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


def asks_for_http2(head: bytes) -> bool:
    """Whether a request head asks for HTTP/2, which is not supported."""
    return _HTTP2.search(head) is not None


@frozen(eq=False, repr=False)
class HttpServer:
    """Runs an application for one request per connection."""

    _app: ASGIApp
    _hsts_max_age: int | None = None
    """Seconds in which browsers shall insist on TLS, told over TLS only; None says nothing."""
    _unsent: Budget = field(factory=lambda: Budget(DEFAULT_UNSENT_BYTES))
    """Bounds what all clients together have not read of their answers."""

    async def answer(self, request: HttpRequest) -> None:
        """Answer the request of a connection; see `serve`."""
        await self.serve(request.peer.stream, request.peer.address, request)

    async def serve(
        self, stream: FrameStream, address: ClientAddress, request: HttpRequest | None = None
    ) -> None:
        """Read a request and answer it; the caller closes the connection.

        The application finds the client's address, and what the connection is, in the state of its
        request. It logs its own failures; they are answered with 500, or with a reset once the
        answer has begun.
        """
        try:
            with trio.CancelScope(deadline=trio.current_time() + REQUEST_TIMEOUT) as scope:
                if asks_for_http2(await stream.read_head()):
                    await stream.send_all(_HTTP1_ONLY)
                else:
                    headers = self._security_headers(stream)
                    exchange = _Exchange(stream, scope, headers, self._unsent, address)
                    exchange.base_path = "" if request is None else request.peer.base_path
                    exchange.note("connection", request)
                    await exchange.run(self._app)
        except DISCONNECTED:
            pass  # the client did not wait for the answer

    def _security_headers(self, stream: FrameStream) -> Headers:
        if self._hsts_max_age is None or not stream.encrypted:
            return []
        return [(b"strict-transport-security", b"max-age=%d" % self._hsts_max_age)]


@define(eq=False, repr=False)
class _Exchange:
    """One request and its answer."""

    _stream: FrameStream
    _scope: trio.CancelScope
    """Contains the whole exchange."""
    _headers: Headers
    """Sent with every answer, beside those of the application."""
    _unsent: Budget
    _address: ClientAddress
    base_path: str = ""
    """The path under which the client reaches the application."""
    reserved: int = 0
    """Bytes of the answer that are being written; kept by the budget."""
    _state: dict[str, Any] = field(factory=dict)
    """What the application knows of the request, and notes."""
    _http: h11.Connection = field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    )
    _head: Message | None = None
    """The head of the answer, held until the body begins: a failure can still become a 500."""
    _bodiless: bool = False
    """Whether the answer has no body, whatever the application sends."""
    _streamed: bool = False
    """Whether a part of the body was sent and more will follow."""
    _body_read: trio.Event = field(factory=trio.Event)
    _handed_over: bool = False
    """Whether the application has written the body itself."""
    _left: trio.Event = field(factory=trio.Event)
    """Set when the client has closed its sending half, or the connection is broken."""

    def note(self, name: str, value: object) -> None:
        """Let the application know something of the request."""
        self._state[name] = value

    @property
    def party(self) -> str:
        """The party that holds the unread bytes: the user or service as which the request was
        authenticated, or else the client's address."""
        return str(self._state.get("party") or f"address:{self._address.key}")

    def evict(self) -> None:
        """Give up the answer: others need the room."""
        self._unsent.release(self.reserved, self)
        self._stream.abort()

    async def run(self, app: ASGIApp) -> None:
        """Serve the request; `trio.BrokenResourceError` when the client is gone."""
        self._http.receive_data(with_path(await self._stream.receive_some()))
        try:
            request = self._http.next_event()
        except h11.RemoteProtocolError as problem:
            problem.__traceback__ = None  # it would hold this frame, which holds it
            await self._refuse(problem.error_status_hint)
            return
        assert isinstance(request, h11.Request)  # the head is complete
        self._bodiless = request.method == b"HEAD"
        if not {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}:
            self._body_read.set()  # there is no body
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            try:
                await app(self._describe(request), self.receive, self.send)
            except Exception:  # noqa: BLE001 (the application logs it)
                self._head = None
            if self._handed_over:
                pass
            elif self._http.our_state is h11.SEND_RESPONSE:
                await self._refuse(500)
            elif self._http.our_state is not h11.MUST_CLOSE:
                self._stream.abort()
            nursery.cancel_scope.cancel()

    def _describe(self, request: h11.Request) -> Scope:
        self._state["address"] = self._address
        target, _, query = request.target.partition(b"?")
        path = unquote(target.decode())
        if path != self.base_path:
            path = self.base_path + path_below(self.base_path, path)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "scheme": "https" if self._stream.encrypted else "http",
            "path": path,
            "raw_path": target,
            "query_string": query,
            "root_path": self.base_path,
            "headers": list(request.headers),
            "state": self._state,
        }

    async def receive(self) -> Message:
        """The next part of the request's body, and after it the client's disconnect."""
        while self._http.their_state is h11.SEND_BODY:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as problem:
                problem.__traceback__ = None
                await self._refuse(problem.error_status_hint)
                return await self._give_up()
            if isinstance(event, h11.Data):
                return {"type": "http.request", "body": bytes(event.data), "more_body": True}
            if isinstance(event, h11.EndOfMessage):
                self._body_read.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._read_body()
        if not self._left.is_set():
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def _read_body(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            await self._write(h11.InformationalResponse(status_code=100, headers=[]))
        try:
            data = await self._stream.receive_some(HTTP_READ_BYTES)
        except DISCONNECTED:
            data = b""
        if not data:
            await self._give_up()
        self._http.receive_data(data)

    async def send(self, message: Message) -> None:
        """Send the head or a part of the body; a part after the last cancels the application."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._http.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY):
            await self._give_up()
        if message["type"] == HAND_OVER:
            await self._hand_over(message["write"])
            return
        events: list[h11.Event] = []
        if self._head is not None:
            status, headers = self._head["status"], [*self._head.get("headers", ())]
            events.append(_response(status, [*headers, *self._headers]))
            self._bodiless |= status in (204, 304)
            self._head = None
        if message.get("body") and not self._bodiless:
            events.append(h11.Data(data=message["body"]))
        self._streamed = message.get("more_body", False) and not self._bodiless
        self._scope.deadline = inf  # each write has one
        if self._streamed:
            self._cancel_stream_if_left()
        else:
            events.append(h11.EndOfMessage())
        await self._write(*events)
        if not self._streamed:
            self._scope.deadline = trio.current_time() + REQUEST_TIMEOUT

    async def _hand_over(self, write: Callable[[], Awaitable[None]]) -> None:
        """Send the head, and let the application write the body to the connection's outlet.

        The body ends with the connection, as in HTTP/1.0: no chunks are around what is written.
        """
        assert self._head is not None
        status, headers = self._head["status"], [*self._head.get("headers", ()), *self._headers]
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [b"%s: %s" % each for each in (*headers, *_closing_headers())]
        self._head, self._handed_over = None, True
        self._scope.deadline = inf
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                await self._stream.send_all(b"\r\n".join((*lines, b"", b"")))
            if not self._bodiless:
                self._streamed = True
                self._cancel_stream_if_left()
                await write()
        except (*DISCONNECTED, trio.TooSlowError):
            await self._give_up()

    async def _write(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        try:
            self._unsent.reserve(len(data), self)
            await self._send_at_a_rate(data)
        except (*DISCONNECTED, trio.TooSlowError):
            await self._give_up()
        finally:
            self._unsent.release(self.reserved, self)

    async def _send_at_a_rate(self, data: bytes) -> None:
        """Send bytes to a client that reads enough of them; `trio.TooSlowError`."""
        view, begun = memoryview(data), trio.current_time()
        for at in range(0, len(data), WRITE_SLICE_BYTES):
            part = view[at : at + WRITE_SLICE_BYTES]
            due = begun + (at + len(part)) / MIN_READ_RATE
            with trio.fail_at(REQUEST_TIMEOUT + min(trio.current_time(), due)):
                await self._stream.send_all(part)

    async def _refuse(self, status: int) -> None:
        """Answer with a status alone, unless an answer has begun."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-length", b"0"), *self._headers]
            await self._write(_response(status, headers), h11.EndOfMessage())

    async def _watch(self) -> None:
        """Notice that the client disconnects. If it sends more bytes, only a write can tell."""
        await self._body_read.wait()
        try:
            if await self._stream.receive_some(1):
                return
        except DISCONNECTED:
            self._scope.cancel()
        self._left.set()
        self._cancel_stream_if_left()

    def _cancel_stream_if_left(self) -> None:
        """Cancel a streamed answer whose client has left; any other is finished first."""
        if self._streamed and self._left.is_set():
            self._scope.cancel()

    async def _give_up(self) -> NoReturn:
        """Cancel the application from within."""
        self._left.set()
        self._scope.cancel()
        await trio.lowlevel.checkpoint()
        raise ConnectionAbortedError  # if it is shielded


def _response(status: int, headers: Headers) -> h11.Response:
    return h11.Response(status_code=status, headers=[*headers, *_closing_headers()])


def _closing_headers() -> Headers:
    return [(b"date", formatdate(usegmt=True).encode()), (b"connection", b"close")]
