"""Types and checks of the settings about limits, networks and origins."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Annotated

from msgspec import Meta

from relay.errors import ConfigError
from relay.model.base_path import BASE_PATH_RULE, is_base_path
from relay.model.origin import NULL_ORIGIN, normal_origin
from relay.settings.columns import Columns
from relay.settings.pictures import StreamNames
from relay.settings.push import PushServices

_NETWORKS = "a list of networks such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"
_ORIGINS = "a list of web origins such as https://example.org, capacitor://localhost or null"

_FRAMES = "a list of origins of web pages, such as https://app.example.org, without a path"
_PAGE_HOST = re.compile(r"[a-z0-9._:\[\]-]+")

Limit = Annotated[
    int, Meta(ge=1, le=1_000_000, title="N", description="a whole number from 1 to 1000000")
]
AlertLimit = Annotated[
    int, Meta(ge=100, le=10_000_000, title="N", description="a whole number from 100 to 10000000")
]
StoredBytes = Annotated[
    int,
    Meta(
        ge=1 << 20,
        le=1 << 50,
        title="BYTES",
        description="a number of bytes from 1048576 to 1125899906842624",
    ),
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
BasePath = Annotated[str, Meta(title="/PATH", description=BASE_PATH_RULE)]
Age = Annotated[
    str,
    Meta(
        pattern=r"\A[1-9][0-9]{0,4}[smhd]\Z",
        title="TIME",
        description="a time such as 90s, 30m, 12h or 30d",
    ),
]
LISTS = (Networks, Origins, Columns, StreamNames, PushServices)
"""Types that are arrays in a file, and separated by commas elsewhere."""


def age_of(text: str) -> timedelta:
    """The time that an `Age` says."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[text[-1]]: int(text[:-1])})


def check_networks(_settings: object, attribute: object, networks: tuple[str, ...]) -> None:
    name = getattr(attribute, "name", "")
    for text in networks:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as problem:
            raise ConfigError(f"{name}: expected {_NETWORKS}; {problem}") from None
        if network.version == 6 and network.network_address.ipv4_mapped:
            raise ConfigError(f"{name}: {text} is IPv4 written as IPv6; write it as IPv4")


def check_origins(_settings: object, attribute: object, origins: tuple[str, ...]) -> None:
    for origin in origins:
        if normal_origin(origin) is None:
            name = getattr(attribute, "name", "")
            raise ConfigError(f"{name}: expected {_ORIGINS}, without a path, not {origin!r}")


def check_base_path(_settings: object, attribute: object, path: str | None) -> None:
    if path is not None and not is_base_path(path):
        name = getattr(attribute, "name", "")
        raise ConfigError(f"{name}: expected {BASE_PATH_RULE}, not {path!r}")


def check_frame_ancestors(_settings: object, attribute: object, origins: tuple[str, ...]) -> None:
    """Those of pages alone: they become words of a Content-Security-Policy."""
    for origin in origins:
        normal = normal_origin(origin)
        host = "" if normal is None else normal.partition("://")[2]
        if normal in (None, NULL_ORIGIN) or not _PAGE_HOST.fullmatch(host):
            name = getattr(attribute, "name", "")
            raise ConfigError(f"{name}: expected {_FRAMES}, not {origin!r}")
