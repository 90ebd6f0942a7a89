"""Attempts to authenticate that failed, and the bans that follow. Floor 2.

Many phones share the address of a carrier, so a ban of an address holds for tokens that nobody
knows yet: whoever was let in lately with a token comes in with it again, and each who comes in
ends the ban. A token is banned by itself, wherever it comes from, so that a phone that repeats an
expired one asks the database no more.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import unquote

import structlog
from attrs import define, field

from relay.guard.address import ClientAddress
from relay.guard.rates import BoundedStorage, Marks, Rate

KNOWN_GOOD = 86_400.0
"""Seconds for which a token that was good is not held back by a ban of its address."""

MOST_KNOWN_GOOD = 65_536

log = structlog.get_logger()


@define(eq=False)
class Attempts:
    """Who failed how often."""

    by_address: Rate
    by_token: Rate
    ban_time: float
    banned: Marks = field(init=False)
    known_good: Marks = field(factory=lambda: Marks(KNOWN_GOOD, BoundedStorage(MOST_KNOWN_GOOD)))
    _secret: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)

    def __attrs_post_init__(self) -> None:
        self.banned = Marks(self.ban_time)

    def wait(self, address: ClientAddress | None, token: str) -> float | None:
        """Seconds to wait before this token is looked up; None for none. Without an address only
        the token counts."""
        name = self._name(token)
        wait = self.banned.left(name)
        if wait is None and address is not None and self.known_good.left(name) is None:
            wait = self.banned.left(address.key)
        return wait

    def succeeded(self, address: ClientAddress, token: str) -> None:
        name = self._name(token)
        self.known_good.set(name)
        self.by_token.forget(name)
        self.by_address.forget(address.key)
        self.banned.forget(address.key)

    def failed(self, address: ClientAddress, token: str) -> None:
        name = self._name(token)
        self.known_good.forget(name)
        self._count(self.by_token, name)
        if self._count(self.by_address, address.key):
            log.warning("address banned", address=address.key, seconds=self.ban_time)

    def _count(self, rate: Rate, key: str) -> bool:
        """Whether this was the last failure of those allowed."""
        rate.hit(key)
        if not rate.is_full(key) or self.banned.left(key) is not None:
            return False
        self.banned.set(key)
        rate.forget(key)
        return True

    def _name(self, token: str) -> str:
        """What a token is remembered by; it tells nothing to who does not know the secret.

        A signed cookie may come URL-encoded, in more spellings than the tables have room for: all
        of them are one.
        """
        plain = unquote(token).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(plain, digest_size=16, key=self._secret).hexdigest()
