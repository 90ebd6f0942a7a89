"""What another server answers about tokens: a few requests at once, with a cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import trio
from attrs import define, field, frozen
from cachetools import LRUCache, TLRUCache

from relay.errors import StoreUnavailable
from relay.model.access.identity import User
from relay.model.access.token_digest import token_digest
from relay.outgoing.http_client import OutageLog, RequestFailed

MAX_REQUESTS = 16
"""Concurrent requests about unknown tokens, and as many about known ones."""
TOKEN_REQUEST_TIMEOUT = 5.0
"""Seconds for one request."""
MAX_CACHED_ANSWERS = 10_000
"""In each of the two caches."""
MAX_KNOWN_TOKENS = 65_536


@frozen
class CachedAnswer:
    """An answer about one token; without a user the token is invalid."""

    user: User | None
    expiry: float
    """By Trio's clock."""


def _expiry(_digest: bytes, answer: CachedAnswer, _now: float) -> float:
    return answer.expiry


@define(eq=False)
class TokenCache:
    """The most recently used answers, by the digests of their tokens.

    An answer is kept for some seconds, and never beyond its token's expiry.
    """

    _seconds: float
    _max_answers: int
    _answers: TLRUCache[bytes, CachedAnswer] = field(init=False, repr=False)
    changes: int = 0
    """Grows with each `forget`: an answer that was awaited meanwhile may be out of date."""

    def __attrs_post_init__(self) -> None:
        self._answers = TLRUCache(self._max_answers, _expiry, timer=trio.current_time)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, digest: bytes) -> CachedAnswer | None:
        return self._answers.get(digest)

    def put(self, digest: bytes, user: User | None) -> None:
        seconds = self._seconds
        if user is not None:
            left = (user.expires_at - datetime.now(UTC)).total_seconds()
            seconds = min(seconds, left)
        # What has expired already is not stored.
        self._answers[digest] = CachedAnswer(user, trio.current_time() + seconds)

    def drop(self, digest: bytes) -> None:
        """Drop the answer about one token."""
        self._answers.pop(digest, None)

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """Drop the answers about this user or this session; without either, all answers."""
        self.changes += 1
        if user_id is None and session_id is None:
            self._answers.clear()
            return
        for digest, answer in list(self._answers.items()):
            user = answer.user
            if user is not None and (user.user_id == user_id or user.session_id == session_id):
                self._answers.pop(digest, None)


@define(eq=False)
class TokenAnswers:
    """Asks another server about tokens, a few at once, and caches its answers. Logs its outages.

    Answers about valid and invalid tokens have separate caches, so that guessed tokens cannot evict
    valid ones. Invalid tokens are cached too: they do not become valid, and a client that retries
    an expired one would cost most.
    """

    _server: str
    """Its name in the log."""
    _request: Callable[[str], Awaitable[User | None]]
    """Asks once: the user of a token; None if it is invalid, `RequestFailed` if the server does not
    say."""
    _cache_seconds: float
    _outage_log: OutageLog = field(init=False)
    _valid: TokenCache = field(init=False)
    _invalid: TokenCache = field(init=False)
    _known: LRUCache[bytes, None] = field(factory=lambda: LRUCache(MAX_KNOWN_TOKENS), repr=False)
    """Tokens that were valid once, by their digests."""
    _unknown: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS))
    _returning: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_REQUESTS))
    """For known tokens, so that they need not wait for unknown ones."""

    def __attrs_post_init__(self) -> None:
        self._outage_log = OutageLog(self._server)
        self._valid = TokenCache(self._cache_seconds, MAX_CACHED_ANSWERS)
        self._invalid = TokenCache(self._cache_seconds, MAX_CACHED_ANSWERS)

    async def get(self, token: str) -> User | None:
        """The cached answer about a token, or a new one; `StoreUnavailable`."""
        key = token_digest(token)
        known = self._cached(key)
        if known is None:
            async with self._returning if key in self._known else self._unknown:
                # Another task may have asked about the same token meanwhile.
                known = self._cached(key)
                if known is None:
                    return await self.renew(token)
        return known.user

    async def renew(self, token: str) -> User | None:
        """A new answer about a token, whatever is cached; `StoreUnavailable`."""
        key, changes = token_digest(token), self._valid.changes
        user = await self._ask(token)
        if user is None:
            self._valid.drop(key)
            self._invalid.put(key, None)
            return None
        self._known[key] = None
        if self._valid.changes == changes:
            self._valid.put(key, user)
        return user

    def forget(self, *, user_id: str | None = None, session_id: str | None = None) -> None:
        """Drop the answers about this user or this session; without either, all answers."""
        self._valid.forget(user_id=user_id, session_id=session_id)
        if user_id is None and session_id is None:
            self._invalid.forget()

    async def _ask(self, token: str) -> User | None:
        try:
            with trio.fail_after(TOKEN_REQUEST_TIMEOUT):
                user = await self._request(token)
        except trio.TooSlowError:
            self._outage_log.failed("too slow")
            raise StoreUnavailable from None
        except RequestFailed as failure:
            self._outage_log.failed(str(failure))
            raise
        self._outage_log.succeeded()
        return user

    def _cached(self, key: bytes) -> CachedAnswer | None:
        return self._valid.get(key) or self._invalid.get(key)
