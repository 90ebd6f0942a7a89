"""Connects to the URL of a relay: TCP, TLS where the URL says so, and a WebSocket on top."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import trio

from relay.client.errors import DialFailed
from relay.client.websocket import WebSocket, open_websocket
from relay.concurrency.happy_eyeballs import alternate_families, connect_first

DEFAULT_PATH = "/streams/subscribe"
DEFAULT_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
ENCRYPTED_SCHEMES = {"wss", "https"}

Wrap = Callable[[trio.abc.Stream], trio.abc.Stream]


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
    async with open_websocket(stream, host, resource, subprotocols) as websocket:
        yield websocket


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
    url: str, *, receive_buffer: int | None = None, local_address: str | None = None
) -> tuple[trio.abc.Stream, str, str]:
    """`open_stream` without TLS, whatever the URL says: `secure` comes next.

    `local_address` is that of this machine to come from; it needs the usual `receive_buffer`.
    """
    address = _parse(url)
    stream = await _connect(address, receive_buffer, local_address)
    return stream, address.netloc, urlunsplit(("", "", address.path or "/", address.query, ""))


async def secure(
    stream: trio.abc.Stream, url: str, tls: ssl.SSLContext | None = None
) -> trio.abc.Stream:
    """Put TLS around a connected stream, if the URL says so; `DialFailed`, and it is closed."""
    address = _parse(url)
    if address.scheme not in ENCRYPTED_SCHEMES:
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


async def _connect(
    address: SplitResult, receive_buffer: int | None, local_address: str | None = None
) -> trio.SocketStream:
    host, port = address.hostname, address.port or DEFAULT_PORTS[address.scheme]
    assert host is not None
    try:
        if receive_buffer is None:
            return await trio.open_tcp_stream(host, port, local_address=local_address)
        found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise DialFailed(f"cannot find {host}: {_reason(error)}") from None
    except OSError as error:
        raise _cannot_connect(address, _failures_of(error)) from None
    failures: list[OSError] = []
    stream = await connect_first(
        partial(_connect_to, entry, receive_buffer, failures)
        for entry in alternate_families(found, lambda entry: entry[0])
    )
    if stream is None:
        raise _cannot_connect(address, failures)
    return stream


async def _connect_to(
    entry: Any, receive_buffer: int, failures: list[OSError]
) -> trio.SocketStream | None:
    """`trio.open_tcp_stream` shows no socket before it is connected."""
    family, kind, protocol, _, where = entry
    try:
        connecting = trio.socket.socket(family, kind, protocol)
    except OSError as error:
        failures.append(error)
        return None
    try:
        connecting.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        await connecting.connect(where)
    except OSError as error:
        connecting.close()
        failures.append(error)
        return None
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


def _cannot_connect(address: SplitResult, failures: Sequence[OSError]) -> DialFailed:
    reasons = ", ".join(dict.fromkeys(map(_reason, failures)))
    return DialFailed(f"cannot connect to {address.netloc}: {reasons}")


def _failures_of(error: OSError) -> Sequence[OSError]:
    """The failures of all attempts of `trio.open_tcp_stream`."""
    if isinstance(error.__cause__, ExceptionGroup):
        return [each for each in error.__cause__.exceptions if isinstance(each, OSError)]
    return [error]


def _reason(error: OSError | UnicodeError) -> str:
    """Without the address, so that the same reason is told once."""
    if isinstance(error, socket.gaierror):  # its number is none of the system's
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error)


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


def with_stream(url: str, stream_id: str | None) -> str:
    """The URL, or a path, with the stream that the connection is for. A relay of several processes
    may then put it where the stream is; nothing else depends on it."""
    if stream_id is None or "?" in url:
        return url
    return f"{url}?stream={quote(stream_id, safe='')}"


def with_path(url: str) -> str:
    """The URL, with the default path if it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # `dial` says what is wrong with it
    if parts.path.strip("/") and not parts.path.endswith("/"):
        return url
    return parts._replace(path=parts.path.rstrip("/") + DEFAULT_PATH).geturl()
