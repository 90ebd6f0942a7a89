"""Tokens stored in Postgres: sessions of Better Auth, unless the application is asked about them,
and service tokens.

All tokens that wait at one moment are looked up with one query per kind. Nothing is cached: however
many phones reconnect at once, they cost a few queries, and a logout takes effect with the next
verification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define, field

from relay.auth.methods.method import Match
from relay.concurrency.batcher import Batcher
from relay.errors import StoreRejects
from relay.metrics import Metrics
from relay.model.access.identity import SERVICE_TOKEN_PREFIX, Identity


class TokenTable(Protocol):
    """A table that tokens of one kind can be looked up in."""

    async def find(self, tokens: Sequence[str]) -> Mapping[str, Identity]:
        """The identity of each valid token; `StoreUnavailable`."""


@define(eq=False, repr=False)
class DatabaseTokens:
    """Looks tokens up in batches."""

    _sessions: TokenTable | None
    _services: TokenTable
    _metrics: Metrics
    _unknown: Callable[[], object] = lambda: None
    """Told of each batch in which a session was not found."""
    batcher: Batcher[str, Identity | None] = field(init=False)
    """Supervised."""

    def __attrs_post_init__(self) -> None:
        self.batcher = Batcher(self._look_up)

    def match(self, token: str) -> Match:
        if token.startswith(SERVICE_TOKEN_PREFIX):
            return Match.YES
        return Match.NO if self._sessions is None else Match.MAYBE

    async def verify(self, token: str) -> Identity | None:
        """Waits as long as the store takes: the caller sets a deadline."""
        try:
            return await self.batcher.ask(token)
        except StoreRejects:  # no stored token is like this, or what is stored cannot be read
            return None

    async def _look_up(self, tokens: Sequence[str]) -> list[Identity | None]:
        self._metrics.verification_batch.observe(len(tokens))
        # Postgres rejects a query with U+0000 in it, and no stored text contains it.
        askable = {token for token in tokens if "\0" not in token}
        services = {token for token in askable if token.startswith(SERVICE_TOKEN_PREFIX)}
        sessions = askable - services
        found: dict[str, Identity] = {}
        if sessions and self._sessions is not None:
            self._metrics.verification_queries += 1
            found |= await self._sessions.find(list(sessions))
            if len(found) < len(sessions):
                self._unknown()
        if services:
            self._metrics.verification_queries += 1
            found |= await self._services.find(list(services))
        return [found.get(token) for token in tokens]
