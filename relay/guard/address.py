"""Whose connection it is: addresses, and the proxies that stand before them. Floor 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from attrs import field, frozen

from relay.transport.head import header_values

Network = IPv4Network | IPv6Network
HOME_PREFIX = 64
"""Bits of an IPv6 address that tell homes apart; whoever has a home has all addresses in it."""


@frozen
class ClientAddress:
    """An address as limits count it and lists look it up."""

    text: str
    key: str = field(repr=False)
    """What limits count by: an IPv4 address, the /64 of an IPv6 address."""
    ip: IPv4Address | IPv6Address | None = field(default=None, repr=False)
    """None for what is no IP address, such as a socket of this machine."""

    @classmethod
    def parse(cls, text: str) -> ClientAddress:
        """From an address alone; whatever is none stands for itself."""
        try:
            ip = ip_address(text.partition("%")[0])
        except ValueError:
            return cls(text, text)
        if isinstance(ip, IPv6Address):
            if ip.ipv4_mapped is None:
                home = IPv6Network((ip, HOME_PREFIX), strict=False)
                return cls(str(ip), str(home), ip)
            ip = ip.ipv4_mapped
        return cls(str(ip), str(ip), ip)

    @classmethod
    def of_peer(cls, peer: str) -> ClientAddress:
        """From `HOST:PORT`, as links name their other side."""
        return cls.parse(peer.rpartition(":")[0] or peer)

    def is_in(self, networks: Iterable[Network]) -> bool:
        return self.ip is not None and any(self.ip in network for network in networks)

    def __str__(self) -> str:
        return self.text


@frozen
class Proxies:
    """Who is believed about the addresses of others."""

    trusted: Sequence[Network] = ()
    speak_proxy_protocol: bool = False
    """Whether they begin each connection with a PROXY header."""

    def owe_header(self, address: ClientAddress) -> bool:
        """Whether a connection from there has to begin with a PROXY header."""
        return self.speak_proxy_protocol and address.is_in(self.trusted)

    def client_behind(self, nearest: ClientAddress, head: bytes) -> ClientAddress:
        """Whose request it is: the last that a trusted proxy names and that is none itself.

        Each proxy adds to the right the address that it was called from, so what stands left of
        the first stranger may be invented.
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


def parse_networks(networks: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(ip_network, networks))


def _without_port(text: str) -> str:
    """The address in `192.0.2.1:80` and `[::1]:80`, which some proxies write."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
