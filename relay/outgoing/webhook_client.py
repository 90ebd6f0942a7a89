"""The HTTP client for webhooks, whose URLs users choose. It is safe against server-side request
forgery (SSRF): it reaches public addresses only.

Host names are resolved here, every address is checked, and only those that passed are connected to,
so DNS rebinding changes nothing. The settings may allow further networks; plain HTTP
is for those alone. It follows no redirects, keeps no cookies, ignores the environment's proxies,
and uses only the status of a response, and its Retry-After in seconds. The caller sets deadlines.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio
from attrs import define, field

from relay.errors import ConfigError, RelayError
from relay.outgoing.public_networks import IpNetwork

if TYPE_CHECKING:
    from relay.outgoing.webhook_pools import WebhookPools

MAX_URL_LENGTH = 2048
STATUS_GONE = 410


class Undelivered(RelayError):
    """A webhook did not accept a request. The text says why, and quotes nothing of either."""

    def __init__(
        self, why: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(why)
        self.status = status
        """Of the response; None if there was none."""
        self.retry_after = retry_after
        """Seconds for which the receiver asks to be left alone; None if it does not say."""

    @property
    def for_good(self) -> bool:
        """Whether trying again is useless."""
        return self.status == STATUS_GONE


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
        raise ConfigError(
            "the URL must begin with https://; http:// is only for networks in webhook_networks"
        )


@define(eq=False, repr=False)
class WebhookClient:
    """Posts to webhooks."""

    _networks: Sequence[IpNetwork]
    """May be reached as well as the public internet."""
    _stack: AsyncExitStack
    _pools: WebhookPools | None = None
    _opening: trio.Lock = field(factory=trio.Lock)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post, and succeed on a status of 200 to 299; `Undelivered` otherwise."""
        pools = self._pools or await self._open()
        response = await pools.post(url, body, headers)
        if not 200 <= response.status < 300:
            raise Undelivered(
                f"status {response.status}",
                status=response.status,
                retry_after=response.retry_after,
            )

    async def _open(self) -> WebhookPools:
        async with self._opening:
            if self._pools is None:
                # httpcore2 and the system's certificates take time and megabytes: they are loaded
                # for the first webhook, in a thread, so that nobody waits for it.
                pools = await trio.to_thread.run_sync(_load_pools, self._networks)
                self._pools = await self._stack.enter_async_context(pools)
            return self._pools


@asynccontextmanager
async def open_webhook_client(allowed: Iterable[str]) -> AsyncIterator[WebhookClient]:
    """A client that may reach these networks as well as the public internet."""
    async with AsyncExitStack() as stack:
        yield WebhookClient(tuple(map(ip_network, allowed)), stack)


def _load_pools(networks: Sequence[IpNetwork]) -> WebhookPools:
    from relay.outgoing.webhook_pools import WebhookPools  # noqa: PLC0415, see `_open`

    return WebhookPools.make(networks)
