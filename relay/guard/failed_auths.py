"""Failed attempts to authenticate, and the bans that follow.

Phones of one carrier share an address, so a ban of an address spares tokens that were good lately,
and every success lifts it. A token is banned wherever it comes from, so that a phone that repeats
an expired one costs no queries.

Of several workers, none counts: their parent does, so that an attempt counts for the machine
(`machine_auths.py`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote

import structlog
from attrs import define, field, frozen

from relay.guard.client_address import ClientAddress
from relay.guard.rates import ExpiringKeys, RateLimiter

KNOWN_GOOD_SECONDS = 86_400.0
"""How long a token that was good is exempt from bans of its address."""
MAX_KNOWN_GOOD = 65_536

log = structlog.get_logger()


@frozen
class AuthKeys:
    """The address and the token of an attempt, as keyed digests."""

    address: str
    token: str


def _tell_nobody(_key: str, _seconds: float) -> None:
    """There is one process."""


def log_ban(address: str, seconds: float) -> None:
    log.warning("address banned", address=address, seconds=seconds)


@define(eq=False, repr=False)
class AuthVerdicts:
    """The bans, and the tokens that were good lately. Neither addresses nor tokens are kept, only
    digests with a secret."""

    ban_time: float
    """Seconds."""
    secret: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)
    """One for all workers of a machine."""
    banned: ExpiringKeys = field(init=False)
    """Addresses and tokens."""
    known_good: ExpiringKeys = field(
        init=False, factory=lambda: ExpiringKeys(KNOWN_GOOD_SECONDS, MAX_KNOWN_GOOD)
    )
    """Tokens."""

    def __attrs_post_init__(self) -> None:
        self.banned = ExpiringKeys(self.ban_time)

    def keys_of(self, address: ClientAddress, token: str) -> AuthKeys:
        return AuthKeys(self.address_key(address), self.token_key(token))

    def address_key(self, address: ClientAddress) -> str:
        return self._digest(address.key.encode("utf-8", "surrogatepass"), b"address")

    def token_key(self, token: str) -> str:
        """A signed cookie may be URL-encoded in more spellings than the tables have room for; all
        have one digest."""
        return self._digest(unquote(token).encode("utf-8", "surrogatepass"), b"token")

    def _digest(self, plain: bytes, person: bytes) -> str:
        # A token may look like an address, and must not be counted as one: hence `person`.
        digest = hashlib.blake2b(plain, digest_size=16, key=self.secret, person=person)
        return digest.hexdigest()


class CountedElsewhere(Protocol):
    """Has attempts counted by another process, which decides on bans."""

    @property
    def verdicts(self) -> AuthVerdicts: ...

    def succeeded(self, keys: AuthKeys) -> object: ...

    def failed(self, keys: AuthKeys, address: ClientAddress) -> object: ...


@define(eq=False, repr=False)
class FailedAuths:
    """Counts failures by address and by token, and bans those with too many."""

    by_address: RateLimiter
    by_token: RateLimiter
    ban_time: float
    """Seconds."""
    unknown: RateLimiter | None = None
    """Attempts by address with tokens that were not good lately, without those that succeeded; None
    where no other server is asked about them."""
    elsewhere: CountedElsewhere | None = None
    """None where this process counts."""
    verdicts: AuthVerdicts = field(init=False)
    on_banned: Callable[[str, float], object] = field(init=False, default=_tell_nobody)
    """Called with the key of an address or a token that is banned, and for how many seconds: 0
    lifts the ban."""
    on_known: Callable[[str, float], object] = field(init=False, default=_tell_nobody)
    """Called with the key of a token that was good, and for how many seconds it stays known: 0 when
    it is good no longer."""

    def __attrs_post_init__(self) -> None:
        elsewhere = self.elsewhere
        self.verdicts = AuthVerdicts(self.ban_time) if elsewhere is None else elsewhere.verdicts

    def wait(self, address: ClientAddress | None, token: str) -> float | None:
        """Seconds until this token may be verified; None if it may be now.

        Without an address, only bans of the token count.
        """
        verdicts = self.verdicts
        key = verdicts.token_key(token)
        wait = verdicts.banned.remaining(key)
        if wait is None and address is not None and verdicts.known_good.remaining(key) is None:
            wait = verdicts.banned.remaining(verdicts.address_key(address))
        return wait

    def begin(self, address: ClientAddress, token: str) -> float | None:
        """Count an attempt before anybody is asked; returns the seconds to wait if it is one too
        many."""
        if self.unknown is None or self._is_known(self.verdicts.token_key(token)):
            return None
        return self.unknown.hit(address.key)

    def succeeded(self, address: ClientAddress, token: str) -> None:
        keys = self.verdicts.keys_of(address, token)
        if self.unknown is not None and not self._is_known(keys.token):
            self.unknown.take_back(address.key)
        if self.elsewhere is None:
            self.count_success(keys)
        else:
            self.elsewhere.succeeded(keys)

    def failed(self, address: ClientAddress, token: str) -> None:
        keys = self.verdicts.keys_of(address, token)
        if self.elsewhere is not None:
            self.elsewhere.failed(keys, address)
        elif self.count_failure(keys):
            log_ban(address.key, self.ban_time)

    def count_success(self, keys: AuthKeys) -> None:
        """Note an attempt that succeeded, maybe in another process."""
        verdicts = self.verdicts
        self.by_token.forget(keys.token)
        self.by_address.forget(keys.address)
        verdicts.known_good.add(keys.token)
        self.on_known(keys.token, KNOWN_GOOD_SECONDS)
        if verdicts.banned.remaining(keys.address) is not None:
            verdicts.banned.forget(keys.address)
            self.on_banned(keys.address, 0.0)

    def count_failure(self, keys: AuthKeys) -> bool:
        """Count an attempt that failed, maybe in another process; returns whether the address is
        banned from now on."""
        if self._is_known(keys.token):
            self.verdicts.known_good.forget(keys.token)
            self.on_known(keys.token, 0.0)
        self._count(self.by_token, keys.token)
        return self._count(self.by_address, keys.address)

    def _count(self, failures: RateLimiter, key: str) -> bool:
        """Count a failure. Returns whether the key is banned from now on."""
        failures.hit(key)
        banned = self.verdicts.banned
        if not failures.is_full(key) or banned.remaining(key) is not None:
            return False
        banned.add(key)
        self.on_banned(key, self.ban_time)
        failures.forget(key)
        return True

    def _is_known(self, key: str) -> bool:
        return self.verdicts.known_good.remaining(key) is not None
