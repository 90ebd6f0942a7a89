"""The client's side of a WebSocket: open one, send and receive messages, close it. Floor 1.

Like all of `transport/` it hides trio-websocket, here with what its clients need mending for: a
handshake that waits for ever when the stream ends, and a ping after our Close that crashes.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit, urlunsplit

import h11
import trio
import trio_websocket
import wsproto
from attrs import define, field

from relay.errors import RelayError

MAX_MESSAGE_SIZE = 24 * 1024 * 1024
"""Bytes: a message of 16 MiB whose data became base64, and what stands around it."""

READ_SIZE = 64 * 1024
PIECE = 64 * 1024
"""Bytes of a large message that are sent at once, so that it can be seen to move."""
GOODBYE_SECONDS = 1.0
"""So long the closing handshake may take. It is shielded: a cancelled client still says goodbye."""

ABNORMAL_CLOSURE = 1006
DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
ENCRYPTED = {"wss", "https"}
MAX_EXPLANATION = 200
"""Characters of a refusal's body that are worth repeating."""

_Rejected = trio_websocket.ConnectionRejected
Wrap = Callable[[trio.abc.Stream], trio.abc.Stream]


class DialFailed(RelayError):
    """There is no WebSocket at this address, or it does not want us."""


@define(eq=False)
class Closed(RelayError):
    """The connection is closed; `code` 1006 when it broke without a Close."""

    code: int
    reason: str | None = None

    def __str__(self) -> str:
        return f"closed with {self.code}{f' ({self.reason})' if self.reason else ''}"


@define(eq=False)
class WebSocket:
    """An open connection. `send` may be called by several tasks, `receive` by one."""

    _connection: trio_websocket.WebSocketConnection
    _stream: _WatchedStream

    @property
    def subprotocol(self) -> str | None:
        """The one that the server chose."""
        chosen: str | None = self._connection.subprotocol
        return chosen

    @property
    def heard_at(self) -> float:
        """When the last byte came, by Trio's clock: of a large message, of a ping, of anything."""
        return self._stream.heard_at

    @property
    def moved_at(self) -> float:
        """When the last byte was taken from us, be it in the midst of a message."""
        return self._stream.moved_at

    async def abort(self) -> None:
        """Break the connection without a goodbye, for which nobody is there."""
        await trio.aclose_forcefully(self._stream)

    async def send(self, message: str | bytes) -> None:
        """Send text or bytes; `Closed` when the connection is gone.

        Cancelled halfway it leaves half a message behind, so it breaks the connection.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await self._connection.send_message(message)
        except trio_websocket.ConnectionClosed as closed:
            raise _closed(closed) from None
        except wsproto.utilities.LocalProtocolError:
            raise Closed(ABNORMAL_CLOSURE) from None
        except trio.Cancelled:
            await trio.aclose_forcefully(self._stream)
            raise

    async def receive(self) -> str | bytes:
        """Wait for the next message; `Closed` after the last one."""
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise _closed(closed) from None


@asynccontextmanager
async def dial(
    url: str,
    *,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
    subprotocols: Sequence[str] = (),
) -> AsyncIterator[WebSocket]:
    """Open the WebSocket at a `ws://` or `wss://` URL and close it at the end; `DialFailed`.

    `subprotocols` are offered; the other options are those of `open_stream`.
    """
    stream, host, resource = await open_stream(
        url, receive_buffer=receive_buffer, wrap=wrap, tls=tls
    )
    async with open_websocket(stream, host, resource, subprotocols) as socket:
        yield socket


def check_url(url: str) -> None:
    """`DialFailed` if there can be no WebSocket at this URL."""
    _parse(url)


async def open_stream(
    url: str,
    *,
    receive_buffer: int | None = None,
    wrap: Wrap | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[trio.abc.Stream, str, str]:
    """Connect to where a URL points; the stream, the host and the resource. `DialFailed`.

    `receive_buffer` sets SO_RCVBUF, in bytes, before connecting, so that the kernel announces a
    window no larger. `wrap` may put a stream of its own around the TCP stream, under TLS. `tls`
    says whom to trust at a `wss://` (or `https://`) URL: whom the system trusts, by default.
    """
    stream, host, resource = await open_plain(url, receive_buffer=receive_buffer)
    stream = wrap(stream) if wrap else stream
    return await secure(stream, url, tls), host, resource


async def open_plain(
    url: str, *, receive_buffer: int | None = None
) -> tuple[trio.abc.Stream, str, str]:
    """`open_stream` without TLS, whatever the URL says: `secure` comes next."""
    address = _parse(url)
    stream = await _connect(address, receive_buffer)
    return stream, address.netloc, urlunsplit(("", "", address.path or "/", address.query, ""))


async def secure(
    stream: trio.abc.Stream, url: str, tls: ssl.SSLContext | None = None
) -> trio.abc.Stream:
    """Put TLS around a connected stream, if the URL says so; `DialFailed`, and it is closed."""
    address = _parse(url)
    if address.scheme not in ENCRYPTED:
        return stream
    encrypted = trio.SSLStream(
        stream,
        tls or ssl.create_default_context(),
        server_hostname=address.hostname,
        https_compatible=True,
    )
    try:
        await encrypted.do_handshake()
    except (trio.BrokenResourceError, trio.ClosedResourceError) as failure:
        await trio.aclose_forcefully(stream)
        raise DialFailed(f"no TLS with {address.netloc}: {_why(failure)}") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return encrypted


@asynccontextmanager
async def open_websocket(
    stream: trio.abc.Stream, host: str, resource: str, subprotocols: Sequence[str] = ()
) -> AsyncIterator[WebSocket]:
    """Make a WebSocket of a connected stream, and close both at the end; `DialFailed`."""
    watched = _WatchedStream(stream)
    goodbye = trio.CancelScope(shield=True)
    try:
        async with open_background() as nursery:
            connection, reader = await nursery.start(
                _run, watched, host, resource, subprotocols, goodbye
            )
            try:
                yield WebSocket(connection, watched)
            finally:
                goodbye.deadline = trio.current_time() + GOODBYE_SECONDS
                with goodbye:
                    await connection.aclose()
                reader.cancel()
    finally:
        await trio.aclose_forcefully(watched)


async def _run(
    stream: _WatchedStream,
    host: str,
    resource: str,
    subprotocols: Sequence[str],
    goodbye: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[tuple[trio_websocket.WebSocketConnection, trio.CancelScope]],
) -> None:
    """Shake hands, then let trio-websocket read; `goodbye` need not wait once it does no more.

    Once the connection is open, only the scope that this starts with ends it: the reader is
    needed for the closing handshake, also that of a cancelled client.
    """
    connected = False
    failure = f"{host} ended the connection during the handshake"
    try:
        async with trio.open_nursery() as nursery:
            stream.on_end = nursery.cancel_scope.cancel
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]  # any stream will do
                host,
                resource,
                subprotocols=list(subprotocols),
                max_message_size=MAX_MESSAGE_SIZE,
                receive_buffer_size=READ_SIZE,
            )
            stream.on_end = None
            connected = nursery.cancel_scope.shield = True
            task_status.started((connection, nursery.cancel_scope))
    except* _Rejected as rejections:
        failure = f"{host} refused: {_explain(rejections)}"
    except* (wsproto.utilities.LocalProtocolError, h11.LocalProtocolError):
        # What its reader ends with when the server surprises it: with a ping behind a Close, or
        # with something that is no handshake.
        failure = f"{host} does not speak WebSocket"
    finally:
        goodbye.cancel()
    if not connected:
        raise DialFailed(failure)


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the body of an `async with` and end with it.

    An error of the body comes out as it is; one of the tasks comes out in a group, with that of the
    body if there is one, too.
    """
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except Exception as error:  # noqa: BLE001 (raised again below)
                failure = error
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is None:
            raise
        raise BaseExceptionGroup("the body, and its tasks", [failure, *group.exceptions]) from None
    if failure is not None:
        raise failure


@define(eq=False)
class _WatchedStream(trio.abc.Stream):
    """A stream that tells when it has ended: trio-websocket's handshake does not notice."""

    _stream: trio.abc.Stream
    on_end: Callable[[], None] | None = None
    heard_at: float = field(factory=trio.current_time)
    moved_at: float = field(factory=trio.current_time)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            await self._stream.send_all(view[start : start + PIECE])
            self.moved_at = trio.current_time()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
            self.heard_at = trio.current_time()
        finally:
            if not data:
                self._end()
        return data

    async def aclose(self) -> None:
        self._end()
        await self._stream.aclose()

    def _end(self) -> None:
        if self.on_end:
            self.on_end()


async def _connect(address: SplitResult, receive_buffer: int | None) -> trio.SocketStream:
    """`trio.open_tcp_stream` in short, because that one shows no socket before it is connected."""
    host, port = address.hostname, address.port or DEFAULT_PORTS[address.scheme]
    try:
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise DialFailed(f"cannot find {host}: {error.strerror}") from None
    failures = []
    for family, kind, protocol, _, where in found:
        socket = trio.socket.socket(family, kind, protocol)
        try:
            if receive_buffer is not None:
                socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
            await socket.connect(where)
        except OSError as error:
            socket.close()
            failures.append(error.strerror or str(error))
        except BaseException:
            socket.close()
            raise
        else:
            return trio.SocketStream(socket)
    raise DialFailed(f"cannot connect to {address.netloc}: {', '.join(dict.fromkeys(failures))}")


def _why(failure: Exception) -> str:
    match failure.__cause__:
        case ssl.SSLCertVerificationError(verify_message=words):
            return f"its certificate is not to be trusted ({words})"
        case ssl.SSLError(reason=str(words)):
            return words.replace("_", " ").lower()
    return "the connection ended during the handshake"


def _parse(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        good = address.scheme in DEFAULT_PORTS and address.hostname and address.port != 0
    except ValueError:
        good = False
    if not good or "@" in address.netloc:
        # It does not repeat the URL: somebody may have put a token into it.
        raise DialFailed("the URL must look like ws://HOST:PORT/path or wss://HOST/path")
    return address


def _explain(rejections: BaseExceptionGroup[_Rejected]) -> str:
    rejection: _Rejected | BaseExceptionGroup[_Rejected] = rejections
    while isinstance(rejection, BaseExceptionGroup):
        rejection = rejection.exceptions[0]
    body = (rejection.body or b"").decode(errors="replace")[:MAX_EXPLANATION]
    return f"HTTP {rejection.status_code} {body}".rstrip()


def _closed(closed: trio_websocket.ConnectionClosed) -> Closed:
    reason = closed.reason  # none when the server broke the protocol
    return Closed(reason.code, reason.reason) if reason else Closed(ABNORMAL_CLOSURE)
