"""The networks and the web origins that clients may connect from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import field, frozen

from relay.guard.client_address import ClientAddress, Network
from relay.model.origin import is_same_host, normal_origin
from relay.transport.handshake.head import header_values


def _normal_origins(origins: Iterable[str]) -> frozenset[str]:
    return frozenset(filter(None, map(normal_origin, origins)))


@frozen
class AccessLists:
    """Decides who may connect. An empty allow list allows everyone."""

    allow_networks: Sequence[Network] = ()
    deny_networks: Sequence[Network] = ()
    """Takes precedence over `allow_networks`."""
    allow_origins: frozenset[str] = field(default=frozenset(), converter=_normal_origins)
    require_origin: bool = False
    """Whether requests without an Origin header, which no browser sends, are refused too."""

    def allows(self, address: ClientAddress) -> bool:
        if address.is_in(self.deny_networks):
            return False
        return not self.allow_networks or address.is_in(self.allow_networks)

    def allows_origin(self, head: bytes, *, behind_proxy: bool = False) -> bool:
        """Whether the page that sent this request, if a page did, may connect.

        Pages of the host that the request is for always may, relay's own among them. Some apps
        send that host as well. `behind_proxy` tells that a trusted proxy sent the request, which
        may name the host that it was asked for.
        """
        if not self.allow_origins:
            return True
        origins = header_values(head, "Origin")
        if not origins:
            return not self.require_origin
        origin = normal_origin(origins[0])
        if len(origins) > 1 or origin is None:
            return False
        return origin in self.allow_origins or any(
            is_same_host(origin, host) for host in _hosts(head, behind_proxy=behind_proxy)
        )


def _hosts(head: bytes, *, behind_proxy: bool) -> list[str]:
    """Return the hosts that a request may be for."""
    hosts = header_values(head, "Host")
    if len(hosts) > 1:
        return []
    forwarded = header_values(head, "X-Forwarded-Host") if behind_proxy else []
    return hosts + [host.strip() for host in ",".join(forwarded).split(",")]
