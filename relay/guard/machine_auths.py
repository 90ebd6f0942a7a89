"""Attempts to authenticate of a worker, which its parent counts for the machine.

A guesser is on any worker, and so are the phones behind the same address. So each worker tells the
parent of its attempts, and goes by the bans and the known tokens that the parent tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define, field
from cachetools import LRUCache

from relay.guard.client_address import ClientAddress
from relay.guard.failed_auths import AuthKeys, AuthVerdicts, log_ban
from relay.guard.rates import ExpiringKeys

SUCCESS_INTERVAL = 1.0
"""Seconds in which the parent is told once of a token that is good again and again, as with HTTP
requests; it is told at once when that lifts a ban."""
MAX_ADDRESSES_TO_NAME = 1024
"""Addresses of the latest failures, to name them in the log when the parent bans them."""


@define(eq=False)
class MachineAuths:
    """What a worker goes by, and what it tells its parent."""

    verdicts: AuthVerdicts
    _tell: Callable[[AuthKeys, bool], object]
    """Called with an attempt, and with whether it succeeded."""
    _told: ExpiringKeys = field(init=False, factory=lambda: ExpiringKeys(SUCCESS_INTERVAL))
    """Tokens and their addresses, of which the parent was told."""
    _addresses: LRUCache[str, str] = field(
        init=False, factory=lambda: LRUCache(MAX_ADDRESSES_TO_NAME), repr=False
    )

    # -- what happens here

    def succeeded(self, keys: AuthKeys) -> None:
        """Note an attempt that succeeded. It holds here before the parent has answered."""
        verdicts, both = self.verdicts, keys.address + keys.token
        was_banned = verdicts.banned.remaining(keys.address) is not None
        verdicts.banned.forget(keys.address)
        verdicts.known_good.add(keys.token)
        if was_banned or self._told.remaining(both) is None:
            self._told.add(both)
            self._tell(keys, True)  # noqa: FBT003 (positional only)

    def failed(self, keys: AuthKeys, address: ClientAddress) -> None:
        """Note an attempt that failed."""
        self.verdicts.known_good.forget(keys.token)
        self._told.forget(keys.address + keys.token)
        self._addresses[keys.address] = address.key
        self._tell(keys, False)  # noqa: FBT003 (positional only)

    # -- what the parent says

    def note_banned(self, bans: Mapping[str, float]) -> None:
        """Note seconds of bans by their keys; 0 lifts one."""
        for key, seconds in bans.items():
            self.verdicts.banned.add(key, seconds)

    def note_known(self, known: Mapping[str, float]) -> None:
        """Note for how many seconds tokens stay known, by their keys; 0 for those that are good no
        longer."""
        for key, seconds in known.items():
            self.verdicts.known_good.add(key, seconds)

    def log_ban(self, key: str) -> None:
        """Write to the log that an address is banned, since of an attempt here."""
        address = self._addresses.get(key)
        if address is not None:
            log_ban(address, self.verdicts.ban_time)
