"""What the settings about limits must be, one by one and together. Floor 0."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Protocol

from msgspec import Meta

from relay.errors import Clash, ConfigError

_NETWORKS = "a list of networks such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"
_ORIGINS = "a list of origins of pages such as https://example.org"

Many = Annotated[
    int, Meta(ge=1, le=1_000_000, title="N", description="a whole number, 1 to 1000000")
]
Plenty = Annotated[
    int, Meta(ge=100, le=10_000_000, title="N", description="a whole number, 100 to 10000000")
]
Rate = Annotated[
    str,
    Meta(
        pattern=r"\A[1-9][0-9]{0,11}/(second|minute|hour)\Z",
        title="N/UNIT",
        description="a number per second, minute or hour, such as 100/minute",
    ),
]
Networks = Annotated[
    tuple[str, ...],
    Meta(
        title="NETWORK,…",
        description=_NETWORKS,
    ),
]
Origins = Annotated[
    tuple[str, ...],
    Meta(title="ORIGIN,…", description=_ORIGINS),
]
LISTS = (Networks, Origins)
"""In a file an array, elsewhere separated by commas."""

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@,]+")


class LimitSettings(Protocol):
    """The settings that are checked together."""

    @property
    def trusted_proxies(self) -> tuple[str, ...]: ...
    @property
    def proxy_protocol(self) -> bool: ...
    @property
    def allow_origins(self) -> tuple[str, ...]: ...
    @property
    def require_origin(self) -> bool: ...


def check_networks(_settings: object, attribute: object, networks: tuple[str, ...]) -> None:
    name = getattr(attribute, "name", "")
    for text in networks:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as problem:
            raise ConfigError(f"{name}: expected {_NETWORKS}; {problem}") from None
        if network.version == 6 and network.network_address.ipv4_mapped:
            raise ConfigError(
                f"{name}: {text} is IPv4 written as IPv6; clients are known by their IPv4"
                " addresses, so write that"
            )


def check_origins(_settings: object, attribute: object, origins: tuple[str, ...]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            name = getattr(attribute, "name", "")
            raise ConfigError(f"{name}: expected {_ORIGINS}, without a path, not {origin!r}")


def limit_clashes(settings: LimitSettings) -> Iterator[Clash]:
    """Settings about limits that do not go together."""
    if settings.proxy_protocol and not settings.trusted_proxies:
        text = "proxy_protocol is spoken with trusted_proxies only: set both"
        yield Clash(text, ("proxy_protocol", "trusted_proxies"))
    if settings.require_origin and not settings.allow_origins:
        text = "require_origin says that allow_origins is for everybody: set both"
        yield Clash(text, ("require_origin", "allow_origins"))
