"""The connections of the HTTP client for webhooks, to checked addresses. A part of
`webhook_client.py`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import httpcore2
import trio
from attrs import define, field, frozen

from relay.concurrency.happy_eyeballs import connect_first
from relay.outgoing.checked_addresses import (
    MAX_LOOKUPS,
    MayConnect,
    allowed_alone,
    look_up_allowed,
    public_or_allowed,
)
from relay.outgoing.public_networks import IpAddress, IpNetwork
from relay.outgoing.webhook_client import Undelivered

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

        def pool(may_connect: MayConnect) -> httpcore2.AsyncConnectionPool:
            return httpcore2.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,  # the caller limits them
                max_keepalive_connections=0,
                network_backend=CheckedBackend(may_connect, lookups),
            )

        return cls(pool(public_or_allowed(networks)), pool(allowed_alone(networks)))

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

    _may_connect: MayConnect
    _lookups: trio.CapacityLimiter
    _bounded: bool = True
    """Whether a connection reads few bytes, which are all that webhooks have to say."""
    _tcp: httpcore2.AsyncNetworkBackend = field(factory=httpcore2.TrioBackend)

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        allowed = await look_up_allowed(host, self._may_connect, self._lookups)
        failures: list[httpcore2.NetworkError] = []

        async def connect(ip: IpAddress) -> httpcore2.AsyncNetworkStream | None:
            try:
                return await self._tcp.connect_tcp(str(ip), port, *args, **options)
            except httpcore2.NetworkError as failure:
                failures.append(failure)
                return None

        stream = await connect_first([partial(connect, ip) for ip in allowed])
        if stream is None:
            raise failures[-1]
        return _BoundedStream(stream) if self._bounded else stream

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


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
