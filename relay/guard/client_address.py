"""The address of a client, also behind trusted proxies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from attrs import field, frozen

from relay.model.base_path import is_base_path
from relay.transport.handshake.head import header_values

Network = IPv4Network | IPv6Network
IPV6_PREFIX_BITS = 64
"""Bits of an IPv6 address that limits count by: one site commonly has all addresses in its /64."""
MAX_CACHED_ADDRESSES, MAX_CACHED_LENGTH = 512, 64
"""Addresses that are kept as they were read, and their characters."""


@frozen
class ClientAddress:
    """An address, as limits count it and access lists match it."""

    text: str
    key: str = field(repr=False)
    """What limits count by: an IPv4 address, or the /64 network of an IPv6 address."""
    ip: IPv4Address | IPv6Address | None = field(default=None, repr=False)
    """None if the text is not an IP address, as with a Unix socket."""

    @classmethod
    def parse(cls, text: str) -> ClientAddress:
        """Read an address without a port. Text that is not an IP address is its own key."""
        return _read_often(text) if len(text) <= MAX_CACHED_LENGTH else _read(text)

    @classmethod
    def of_peer(cls, peer: str) -> ClientAddress:
        """Read `HOST:PORT`, as links name their peer."""
        return cls.parse(peer.rpartition(":")[0] or peer)

    def is_in(self, networks: Iterable[Network]) -> bool:
        return self.ip is not None and any(self.ip in network for network in networks)

    def __str__(self) -> str:
        return self.text


def _read(text: str) -> ClientAddress:
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return ClientAddress(text, text)
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is None:
            site = IPv6Network((ip, IPV6_PREFIX_BITS), strict=False)
            return ClientAddress(str(ip), str(site), ip)
        ip = ip.ipv4_mapped
    return ClientAddress(str(ip), str(ip), ip)


_read_often = lru_cache(MAX_CACHED_ADDRESSES)(_read)
"""Phones of one network come with the same address, and those of a proxy with that of the proxy."""


@frozen
class Proxies:
    """The proxies that are trusted to tell the addresses of their clients."""

    trusted: Sequence[Network] = ()
    speak_proxy_protocol: bool = False
    """Whether trusted proxies begin each connection with a PROXY protocol header."""
    base_path: str = ""
    """The path under which clients reach relay, whatever proxies say; empty if they may say it."""

    def owe_header(self, address: ClientAddress) -> bool:
        """Whether a connection from this address must begin with a PROXY protocol header."""
        return self.speak_proxy_protocol and address.is_in(self.trusted)

    def client_behind(self, nearest: ClientAddress, head: bytes) -> ClientAddress:
        """The client of a request: the last address in X-Forwarded-For that is no trusted proxy.

        Each proxy appends the address that it was called from, so what stands to the left of the
        client may be forged.
        """
        if not nearest.is_in(self.trusted):
            return nearest
        named = ",".join(header_values(head, "X-Forwarded-For")).split(",")
        for text in reversed(named):
            found = ClientAddress.parse(_without_port(text.strip()))
            if found.ip is None:
                break
            nearest = found
            if not found.is_in(self.trusted):
                break
        return nearest

    def base_path_for(self, nearest: ClientAddress, head: bytes) -> str:
        """The path under which the client of a request reaches relay: that of the settings, or the
        one that a trusted proxy names as X-Forwarded-Prefix. Anything else there is ignored."""
        if self.base_path or not nearest.is_in(self.trusted):
            return self.base_path
        named = header_values(head, "X-Forwarded-Prefix")
        return named[0] if len(named) == 1 and is_base_path(named[0]) else ""


def parse_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(ip_network, networks))


def _without_port(text: str) -> str:
    """Remove the port from `192.0.2.1:80` or `[::1]:80`, which some proxies write."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
