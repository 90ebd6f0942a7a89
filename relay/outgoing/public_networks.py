"""Which addresses belong to the public internet, as the registries of IANA have it.

Python's `is_global` knows the registries of the day on which that Python was made. These are of
2025-10: https://www.iana.org/assignments/iana-ipv4-special-registry,
https://www.iana.org/assignments/iana-ipv6-special-registry and
https://www.iana.org/assignments/ipv6-address-space.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

NOT_REACHABLE_V4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private use
    "100.64.0.0/10",  # shared address space of carriers
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local, with the metadata of clouds
    "172.16.0.0/12",  # private use
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays, deprecated
    "192.168.0.0/16",  # private use
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and limited broadcast
)
REACHABLE_V4 = (
    "192.0.0.9/32",  # Port Control Protocol anycast
    "192.0.0.10/32",  # TURN anycast
)
"""Exceptions within networks that are not reachable."""
GLOBAL_UNICAST = IPv6Network("2000::/3")
"""Of the rest of IPv6, IANA has assigned nothing that is globally reachable, but for NAT64."""
NOT_REACHABLE_V6 = (
    "2001::/23",  # IETF protocol assignments
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
)
REACHABLE_V6 = (
    "2001:1::1/128",  # Port Control Protocol anycast
    "2001:1::2/128",  # TURN anycast
    "2001:1::3/128",  # DNS-SD service registration anycast
    "2001:3::/32",  # AMT
    "2001:4:112::/48",  # AS112
    "2001:20::/28",  # ORCHIDv2
    "2001:30::/28",  # drone remote identification
)
"""Exceptions within networks that are not reachable."""
NAT64 = IPv6Network("64:ff9b::/96")
TEREDO = IPv6Network("2001::/32")

_NOT_REACHABLE_V4 = tuple(map(IPv4Network, NOT_REACHABLE_V4))
_REACHABLE_V4 = tuple(map(IPv4Network, REACHABLE_V4))
_NOT_REACHABLE_V6 = tuple(map(IPv6Network, NOT_REACHABLE_V6))
_REACHABLE_V6 = tuple(map(IPv6Network, REACHABLE_V6))


def is_public(ip: IpAddress) -> bool:
    """Whether an address, and every address embedded in it, belongs to the public internet."""
    if isinstance(ip, IPv4Address):
        return not _is_in(ip, _NOT_REACHABLE_V4) or _is_in(ip, _REACHABLE_V4)
    embedded = _embedded_in(ip)
    if embedded:
        return all(map(is_public, embedded))
    if ip not in GLOBAL_UNICAST:
        return False
    return not _is_in(ip, _NOT_REACHABLE_V6) or _is_in(ip, _REACHABLE_V6)


def _embedded_in(ip: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to this address come to."""
    if ip.ipv4_mapped is not None:
        return (ip.ipv4_mapped,)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    if ip in NAT64:
        return (IPv4Address(int(ip) & 0xFFFFFFFF),)
    if ip in TEREDO and ip.teredo is not None:
        return ip.teredo  # its server and its client
    return ()


def _is_in(ip: IpAddress, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(ip in network for network in networks)
