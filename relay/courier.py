"""Posts to addresses that users chose, and reaches nothing but the public internet by it. Floor 1.

What counts is the address that is connected to: names are looked up here, each address is judged,
and one of those that passed is what the connection is made to. So a name that leads elsewhere the
second time changes nothing. Networks beside the public ones can be allowed; plain HTTP goes to
those alone. Redirects are not followed, cookies not kept, the environment's proxies not used, and
of an answer only its status is read. A deadline is the caller's.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import trio
from attrs import define, field

from relay.errors import ConfigError, RelayError

LOOKUPS = 16
"""Names that are looked up at once; a lookup that hangs keeps a thread."""
LONGEST_URL = 2048
MOST_READ, READ_AT_ONCE = 128 * 1024, 4096
"""Bytes of an answer, of which only the status counts: in all, so that one who says `100 Continue`
without end has no ear for long, and between two turns of all other tasks."""
TROUBLE = (
    httpcore2.ConnectionNotAvailable,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)
NAT64 = IPv6Network("64:ff9b::/96")

IpAddress = IPv4Address | IPv6Address


class Undelivered(RelayError):
    """What was posted was not taken; the text says why, and quotes nothing."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good
        """Whether there is no use in trying again."""


def check_target(url: str, *, plain: bool) -> None:
    """`ConfigError` for what is no address to post to; `plain`: over HTTP, too."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not re.fullmatch(r"[\x21-\x7e]+", url) or len(url) > LONGEST_URL:
        raise ConfigError(
            f"expected an address such as https://app.example.org/alerts, of at most {LONGEST_URL}"
            " characters of ASCII"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ConfigError("an address to post to has no user, no password and no fragment")
    if parts.scheme != "https" and not (plain and parts.scheme == "http"):
        raise ConfigError("expected https://; http:// is for networks in webhook_networks alone")


@define(eq=False)
class Courier:
    """Posts."""

    _encrypted: httpcore2.AsyncConnectionPool
    _plain: httpcore2.AsyncConnectionPool

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Done when it was answered with a status of 200 to 299; else `Undelivered`."""
        pool = self._encrypted if url.lower().startswith("https://") else self._plain
        try:
            async with pool.stream(
                "POST", url, headers=[*headers.items()], content=body
            ) as response:
                status = response.status
        except TROUBLE as error:
            # Only its kind: its text may quote the request.
            raise Undelivered(type(error).__name__) from None
        if not 200 <= status < 300:
            raise Undelivered(f"status {status}", for_good=status == 410)


@asynccontextmanager
async def open_courier(allowed: Iterable[str]) -> AsyncIterator[Courier]:
    """One that also goes to these networks."""
    networks = tuple(map(ip_network, allowed))

    def is_allowed(ip: IpAddress) -> bool:
        return any(ip in network for network in networks)

    def pool(judge: Any) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,  # the caller's bound
            max_keepalive_connections=0,
            network_backend=_Network(judge, lookups),
        )

    lookups = trio.CapacityLimiter(LOOKUPS)
    async with (
        pool(lambda ip: is_public(ip) or is_allowed(ip)) as encrypted,
        pool(is_allowed) as plain,
    ):
        yield Courier(encrypted, plain)


def is_public(ip: IpAddress) -> bool:
    """Whether an address is one of the internet's, and leads to no other behind it."""
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in NAT64:
            inner = IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(inner)
        if ip.is_site_local:  # as private networks were once written; Python calls it global
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


@define(eq=False)
class _Network(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that pass."""

    _judge: Any
    _lookups: trio.CapacityLimiter
    _tcp: httpcore2.AsyncNetworkBackend = field(factory=httpcore2.TrioBackend)

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        allowed = [ip for ip in await self._look_up(host) if self._judge(_unwrapped(ip))]
        if not allowed:
            raise Undelivered("not an address that webhooks may call")
        for ip in allowed[:-1]:
            try:
                return _Ear(await self._tcp.connect_tcp(str(ip), port, *args, **options))
            except httpcore2.NetworkError:
                continue
        return _Ear(await self._tcp.connect_tcp(str(allowed[-1]), port, *args, **options))

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
        # With a scope (`%eth0`) an address is of some link, and no global one.
        return [ip_address(address[0]) for *_, address in found if "%" not in address[0]]


@define(eq=False)
class _Ear(httpcore2.AsyncNetworkStream):
    """A connection that hears so much and no more."""

    _stream: httpcore2.AsyncNetworkStream
    _left: int = MOST_READ

    async def read(self, max_bytes: int, *args: Any, **options: Any) -> bytes:
        if not self._left:
            raise httpcore2.ReadError
        most = min(max_bytes, READ_AT_ONCE, self._left)
        data = await self._stream.read(most, *args, **options)
        self._left -= len(data)
        return data

    async def write(self, *args: Any, **options: Any) -> None:
        await self._stream.write(*args, **options)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _Ear(await self._stream.start_tls(*args, **options))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _unwrapped(ip: IpAddress) -> IpAddress:
    """IPv4 that is written as IPv6 is IPv4."""
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip
