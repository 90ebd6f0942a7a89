"""From which networks, and from which pages, anybody may come. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from relay.guard.address import ClientAddress, Network
from relay.transport.head import header_values


@frozen
class Lists:
    """Who may come in. An empty list of what is allowed allows everything."""

    allow_networks: Sequence[Network] = ()
    deny_networks: Sequence[Network] = ()
    """What stands here is denied, whatever else stands in `allow_networks`."""
    allow_origins: frozenset[str] = frozenset()
    require_origin: bool = False
    """Whether those without an origin, which are no browsers, are refused as well."""

    def admit(self, address: ClientAddress) -> bool:
        if address.is_in(self.deny_networks):
            return False
        return not self.allow_networks or address.is_in(self.allow_networks)

    def admit_page(self, head: bytes) -> bool:
        """Whether the page that asks, if it is one, may."""
        if not self.allow_origins:
            return True
        origins = header_values(head, "Origin")
        if not origins:
            return not self.require_origin
        return len(origins) == 1 and origins[0].lower() in self.allow_origins
