"""Failed attempts to authenticate, and the bans that follow.

Phones of one carrier share an address, so a ban of an address spares tokens that were good lately,
and every success lifts it. A token is banned wherever it comes from, so that a phone that repeats
an expired one costs no queries.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import unquote

import structlog
from attrs import define, field

from relay.guard.client_address import ClientAddress
from relay.guard.rates import ExpiringKeys, RateLimiter

KNOWN_GOOD_SECONDS = 86_400.0
"""How long a token that was good is exempt from bans of its address."""
MAX_KNOWN_GOOD = 65_536

log = structlog.get_logger()


@define(eq=False)
class FailedAuths:
    """Counts failures by address and by token, and bans those with too many."""

    by_address: RateLimiter
    by_token: RateLimiter
    ban_time: float
    """Seconds."""
    unknown: RateLimiter | None = None
    """Attempts by address with tokens that were not good lately, without those that succeeded; None
    where no other server is asked about them."""
    banned: ExpiringKeys = field(init=False)
    """Keys of addresses, and digests of tokens."""
    known_good: ExpiringKeys = field(
        factory=lambda: ExpiringKeys(KNOWN_GOOD_SECONDS, MAX_KNOWN_GOOD)
    )
    """Digests of tokens."""
    _secret: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)

    def __attrs_post_init__(self) -> None:
        self.banned = ExpiringKeys(self.ban_time)

    def wait(self, address: ClientAddress | None, token: str) -> float | None:
        """Seconds until this token may be verified; None if it may be now.

        Without an address, only bans of the token count.
        """
        digest = self._digest(token)
        wait = self.banned.remaining(digest)
        if wait is None and address is not None and self.known_good.remaining(digest) is None:
            wait = self.banned.remaining(address.key)
        return wait

    def begin(self, address: ClientAddress, token: str) -> float | None:
        """Count an attempt before anybody is asked; returns the seconds to wait if it is one too
        many."""
        if self.unknown is None or self.known_good.remaining(self._digest(token)) is not None:
            return None
        return self.unknown.hit(address.key)

    def succeeded(self, address: ClientAddress, token: str) -> None:
        digest = self._digest(token)
        if self.unknown is not None and self.known_good.remaining(digest) is None:
            self.unknown.take_back(address.key)
        self.known_good.add(digest)
        self.by_token.forget(digest)
        self.by_address.forget(address.key)
        self.banned.forget(address.key)

    def failed(self, address: ClientAddress, token: str) -> None:
        digest = self._digest(token)
        self.known_good.forget(digest)
        self._count(self.by_token, digest)
        if self._count(self.by_address, address.key):
            log.warning("address banned", address=address.key, seconds=self.ban_time)

    def _count(self, failures: RateLimiter, key: str) -> bool:
        """Count a failure. Returns whether the key is banned from now on."""
        failures.hit(key)
        if not failures.is_full(key) or self.banned.remaining(key) is not None:
            return False
        self.banned.add(key)
        failures.forget(key)
        return True

    def _digest(self, token: str) -> str:
        """A keyed digest that stands for the token in the tables.

        A signed cookie may be URL-encoded in more spellings than the tables have room for; all
        have one digest.
        """
        plain = unquote(token).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(plain, digest_size=16, key=self._secret).hexdigest()
