"""The connections of the HTTP client for webhooks, to checked addresses. A part of
`webhook_client.py`.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any, Self

import httpcore2
import trio
from attrs import define, field, frozen

from relay.concurrency.happy_eyeballs import alternate_families, connect_first
from relay.outgoing.public_networks import IpAddress, IpNetwork, is_public
from relay.outgoing.webhook_client import Undelivered

MAX_LOOKUPS = 16
"""Concurrent DNS lookups; one that hangs keeps a thread."""
MAX_ADDRESSES = 8
"""Addresses of a name that are tried: the owner of a name decides how many it has."""
MAX_RESPONSE_BYTES, READ_BYTES = 128 * 1024, 4096
"""Bytes of a response in total, so that endless `100 Continue`s end, and in one read, so that other
tasks get their turn."""
WEBHOOK_CLOSE_TIMEOUT = 1.0
"""Seconds to close what is open, however relay ends."""
REQUEST_ERRORS = (
    httpcore2.ConnectionNotAvailable,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)


@frozen
class WebhookResponse:
    """What is used of a response."""

    status: int
    retry_after: float | None
    """Seconds."""


@define(eq=False)
class WebhookPools:
    """One pool for HTTPS, and one for plain HTTP, which fewer networks may be called with."""

    _encrypted: httpcore2.AsyncConnectionPool
    _plain: httpcore2.AsyncConnectionPool

    @classmethod
    def make(cls, networks: Sequence[IpNetwork]) -> WebhookPools:
        """Pools that reach these networks as well as the public internet. For any thread."""
        lookups = trio.CapacityLimiter(MAX_LOOKUPS)
        context = ssl.create_default_context()

        def is_allowed(ip: IpAddress) -> bool:
            return any(ip in network for network in networks)

        def pool(may_connect: Any) -> httpcore2.AsyncConnectionPool:
            return httpcore2.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,  # the caller limits them
                max_keepalive_connections=0,
                network_backend=CheckedBackend(may_connect, lookups),
            )

        return cls(pool(lambda ip: is_public(ip) or is_allowed(ip)), pool(is_allowed))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.move_on_after(WEBHOOK_CLOSE_TIMEOUT, shield=True):
            await self._encrypted.aclose()
            await self._plain.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """The response; `Undelivered` if there is none."""
        pool = self._encrypted if url.lower().startswith("https://") else self._plain
        try:
            async with pool.stream(
                "POST", url, headers=[*headers.items()], content=body
            ) as response:
                return WebhookResponse(response.status, _retry_after(response.headers))
        except REQUEST_ERRORS as error:
            # Not its text, which may quote the request.
            raise Undelivered(type(error).__name__) from None


@define(eq=False)
class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    _may_connect: Callable[[IpAddress], bool]
    _lookups: trio.CapacityLimiter
    _bounded: bool = True
    """Whether a connection reads few bytes, which are all that webhooks have to say."""
    _tcp: httpcore2.AsyncNetworkBackend = field(factory=httpcore2.TrioBackend)

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        found = await self._look_up(host)
        allowed = [ip for ip in found if self._may_connect(_unwrapped(ip))]
        if not allowed:
            raise Undelivered("not an address that webhooks may call")
        failures: list[httpcore2.NetworkError] = []

        async def connect(ip: IpAddress) -> httpcore2.AsyncNetworkStream | None:
            try:
                return await self._tcp.connect_tcp(str(ip), port, *args, **options)
            except httpcore2.NetworkError as failure:
                failures.append(failure)
                return None

        ordered = alternate_families(allowed, lambda ip: ip.version)[:MAX_ADDRESSES]
        stream = await connect_first([partial(connect, ip) for ip in ordered])
        if stream is None:
            raise failures[-1]
        return _BoundedStream(stream) if self._bounded else stream

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _look_up(self, host: str) -> list[IpAddress]:
        def look_up() -> list[Any]:
            return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)

        try:
            found = await trio.to_thread.run_sync(
                look_up, limiter=self._lookups, abandon_on_cancel=True
            )
        except (OSError, UnicodeError):
            raise Undelivered("its name cannot be looked up") from None
        # An address with a scope (`%eth0`) is link-local.
        return [ip_address(address[0]) for *_, address in found if "%" not in address[0]]


@define(eq=False)
class _BoundedStream(httpcore2.AsyncNetworkStream):
    """A connection that reads a bounded number of bytes."""

    _stream: httpcore2.AsyncNetworkStream
    _left: int = MAX_RESPONSE_BYTES

    async def read(self, max_bytes: int, *args: Any, **options: Any) -> bytes:
        if not self._left:
            raise httpcore2.ReadError
        most = min(max_bytes, READ_BYTES, self._left)
        data = await self._stream.read(most, *args, **options)
        self._left -= len(data)
        return data

    async def write(self, *args: Any, **options: Any) -> None:
        await self._stream.write(*args, **options)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _BoundedStream(await self._stream.start_tls(*args, **options))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """The seconds of a Retry-After header (RFC 9110); a date counts as none."""
    for name, value in headers:
        if name.lower() == b"retry-after" and re.fullmatch(rb"[0-9]{1,6}", value):
            return float(value)
    return None


def _unwrapped(ip: IpAddress) -> IpAddress:
    """The IPv4 address, if it is mapped into IPv6."""
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip
