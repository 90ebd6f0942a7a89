"""The HTTP client for the object storage that the settings name.

It reaches what webhooks may call: public addresses by https://, and the networks of
`webhook_networks`, by http:// too. It follows no redirects, keeps no cookies and ignores the
environment's proxies. The caller signs requests, and sets deadlines.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_network

import httpcore2
import trio
from attrs import define, field, frozen

from relay.outgoing.checked_addresses import MAX_LOOKUPS
from relay.outgoing.http_client import RequestFailed
from relay.outgoing.public_networks import IpAddress, is_public
from relay.outgoing.webhook_client import Undelivered
from relay.outgoing.webhook_pools import REQUEST_ERRORS, CheckedBackend

MAX_OBJECT_CONNECTIONS = 8
"""Concurrent connections; further requests wait for one."""
OBJECT_CLOSE_TIMEOUT = 1.0
"""Seconds to close what is open, however relay ends."""


@frozen
class ObjectAnswer:
    """An answer of any status."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By their names in lower case."""
    body: bytes = field(repr=False)


@define(eq=False)
class ObjectClient:
    """Sends requests to an object storage."""

    _pool: httpcore2.AsyncConnectionPool = field(repr=False)

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        max_bytes: int,
    ) -> ObjectAnswer:
        """The answer, whatever its status; `RequestFailed` if there is none, or a larger body. The
        text quotes nothing of either."""
        try:
            async with self._pool.stream(
                method, url, headers=[*headers.items()], content=body
            ) as response:
                found = bytearray()
                with trio.CancelScope() as reading:
                    async for part in response.aiter_stream():
                        found += part
                        if len(found) > max_bytes:
                            # Not `break`: generators would be left to the garbage collector.
                            reading.cancel()
        except Undelivered:
            raise RequestFailed("its address is none that webhooks may call") from None
        except REQUEST_ERRORS as error:
            raise RequestFailed(type(error).__name__) from None
        if len(found) > max_bytes:
            raise RequestFailed(f"more than {max_bytes} bytes")
        named = {name.decode("latin-1").lower(): value for name, value in response.headers}
        texts = {name: value.decode("latin-1") for name, value in named.items()}
        return ObjectAnswer(response.status, texts, bytes(found))


@asynccontextmanager
async def open_object_client(
    allowed: Iterable[str], *, encrypted: bool
) -> AsyncIterator[ObjectClient]:
    """A client that may reach these networks, and the public internet if its URLs are `encrypted`.
    Its connections are closed with the block."""
    networks = tuple(map(ip_network, allowed))

    def may_connect(ip: IpAddress) -> bool:
        return any(ip in network for network in networks) or (encrypted and is_public(ip))

    pool = httpcore2.AsyncConnectionPool(
        ssl_context=ssl.create_default_context(),
        max_connections=MAX_OBJECT_CONNECTIONS,
        network_backend=CheckedBackend(
            may_connect, trio.CapacityLimiter(MAX_LOOKUPS), bounded=False
        ),
    )
    try:
        yield ObjectClient(pool)
    finally:
        with trio.move_on_after(OBJECT_CLOSE_TIMEOUT, shield=True):
            await pool.aclose()
