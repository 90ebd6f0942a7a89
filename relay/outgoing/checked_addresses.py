"""The addresses of host names that somebody chose: each is checked, and only those that passed are
connected to, so DNS rebinding changes nothing. For webhooks, and all that is treated as they are.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any

import trio

from relay.concurrency.happy_eyeballs import alternate_families
from relay.outgoing.public_networks import IpAddress, IpNetwork, is_public
from relay.outgoing.webhook_client import Undelivered

MAX_LOOKUPS = 16
"""Concurrent DNS lookups; one that hangs keeps a thread."""
MAX_ADDRESSES = 8
"""Addresses of a name that are tried: the owner of a name decides how many it has."""

MayConnect = Callable[[IpAddress], bool]


def allowed_alone(networks: Sequence[IpNetwork]) -> MayConnect:
    """For connections that are not encrypted."""
    return lambda ip: any(ip in network for network in networks)


def public_or_allowed(networks: Sequence[IpNetwork]) -> MayConnect:
    """For connections by TLS."""
    is_allowed = allowed_alone(networks)
    return lambda ip: is_public(ip) or is_allowed(ip)


async def look_up_allowed(
    host: str, may_connect: MayConnect, lookups: trio.CapacityLimiter
) -> Sequence[IpAddress]:
    """The addresses of a name that may be connected to, in the order in which to try them;
    `Undelivered` if there are none."""

    def look_up() -> list[Any]:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)

    try:
        found = await trio.to_thread.run_sync(look_up, limiter=lookups, abandon_on_cancel=True)
    except (OSError, UnicodeError):
        raise Undelivered("its name cannot be looked up") from None
    # An address with a scope (`%eth0`) is link-local.
    addresses = [ip_address(address[0]) for *_, address in found if "%" not in address[0]]
    allowed = [ip for ip in addresses if may_connect(_unwrapped(ip))]
    if not allowed:
        raise Undelivered("relay may not call its address: it is not in webhook_networks")
    return alternate_families(allowed, lambda ip: ip.version)[:MAX_ADDRESSES]


def _unwrapped(ip: IpAddress) -> IpAddress:
    """The IPv4 address, if it is mapped into IPv6."""
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) else None) or ip
