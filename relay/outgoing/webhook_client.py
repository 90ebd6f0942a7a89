"""The HTTP client for webhooks, whose URLs users choose. It is safe against server-side request
forgery (SSRF): it reaches public addresses only.

Host names are resolved here, every address is checked, and only those that passed are connected to,
so DNS rebinding changes nothing. The settings may allow further networks; plain HTTP
is for those alone. It follows no redirects, keeps no cookies, ignores the environment's proxies,
and uses only the status of a response. The caller sets deadlines.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import trio
from attrs import define, field

from relay.concurrency.happy_eyeballs import alternate_families, connect_first
from relay.errors import ConfigError, RelayError
from relay.outgoing.public_networks import IpAddress, is_public

MAX_LOOKUPS = 16
"""Concurrent DNS lookups; one that hangs keeps a thread."""
MAX_ADDRESSES = 8
"""Addresses of a name that are tried: the owner of a name decides how many it has."""
MAX_URL_LENGTH = 2048
MAX_RESPONSE_BYTES, READ_BYTES = 128 * 1024, 4096
"""Bytes of a response in total, so that endless `100 Continue`s end, and in one read, so that other
tasks get their turn."""
REQUEST_ERRORS = (
    httpcore2.ConnectionNotAvailable,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)


class Undelivered(RelayError):
    """A webhook did not accept a request. The text says why, and quotes nothing of either."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good
        """Whether trying again is useless."""


def check_webhook_url(url: str, *, plain: bool) -> None:
    """`ConfigError` unless the URL can be a webhook's; `plain` allows http:// as well."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not re.fullmatch(r"[\x21-\x7e]+", url) or len(url) > MAX_URL_LENGTH:
        raise ConfigError(
            "expected an address such as https://app.example.org/alerts, of at most"
            f" {MAX_URL_LENGTH} characters of ASCII"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ConfigError("an address to post to has no user, no password and no fragment")
    if parts.scheme != "https" and not (plain and parts.scheme == "http"):
        raise ConfigError("expected https://; http:// is for networks in webhook_networks alone")


@define(eq=False)
class WebhookClient:
    """Posts to webhooks."""

    _encrypted: httpcore2.AsyncConnectionPool
    _plain: httpcore2.AsyncConnectionPool

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post, and succeed on a status of 200 to 299; `Undelivered` otherwise."""
        pool = self._encrypted if url.lower().startswith("https://") else self._plain
        try:
            async with pool.stream(
                "POST", url, headers=[*headers.items()], content=body
            ) as response:
                status = response.status
        except REQUEST_ERRORS as error:
            # Not its text, which may quote the request.
            raise Undelivered(type(error).__name__) from None
        if not 200 <= status < 300:
            raise Undelivered(f"status {status}", for_good=status == 410)


@asynccontextmanager
async def open_webhook_client(allowed: Iterable[str]) -> AsyncIterator[WebhookClient]:
    """A client that may reach these networks as well as the public internet."""
    networks = tuple(map(ip_network, allowed))

    def is_allowed(ip: IpAddress) -> bool:
        return any(ip in network for network in networks)

    def pool(may_connect: Any) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,  # the caller limits them
            max_keepalive_connections=0,
            network_backend=_CheckedBackend(may_connect, lookups),
        )

    lookups = trio.CapacityLimiter(MAX_LOOKUPS)
    async with (
        pool(lambda ip: is_public(ip) or is_allowed(ip)) as encrypted,
        pool(is_allowed) as plain,
    ):
        yield WebhookClient(encrypted, plain)


@define(eq=False)
class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    _may_connect: Any
    _lookups: trio.CapacityLimiter
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
        return _BoundedStream(stream)

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


def _unwrapped(ip: IpAddress) -> IpAddress:
    """The IPv4 address, if it is mapped into IPv6."""
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip
