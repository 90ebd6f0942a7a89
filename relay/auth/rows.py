"""Tokens that stand in Postgres: sessions of Better Auth and service tokens. Floor 2.

All that wait at one moment are looked up with one query of each kind. Nothing is cached: a batch
costs one query however many phones reconnect at once, and a logout counts from the next
verification on.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from relay.auth.way import Claim
from relay.batching import Batcher
from relay.metrics import Metrics
from relay.model import Identity
from relay.postgres.services import SERVICE_TOKEN_PREFIX, ServiceTokens
from relay.postgres.sessions import BetterAuthSessions


@define(eq=False)
class TokenRows:
    """Looks tokens up."""

    _sessions: BetterAuthSessions
    _services: ServiceTokens
    _metrics: Metrics
    service: Batcher[str, Identity | None] = field(init=False)
    """Runs under the supervisor."""

    def __attrs_post_init__(self) -> None:
        self.service = Batcher(self._look_up)

    def claim(self, token: str) -> Claim:
        return Claim.MINE if token.startswith(SERVICE_TOKEN_PREFIX) else Claim.PERHAPS

    async def verify(self, token: str) -> Identity | None:
        """Waits as long as the store does: the deadline is the caller's."""
        return await self.service.ask(token)

    async def _look_up(self, tokens: Sequence[str]) -> list[Identity | None]:
        self._metrics.verification_batch.observe(len(tokens))
        # No text in Postgres holds U+0000, and it refuses a query that does.
        askable = {token for token in tokens if "\0" not in token}
        services = {token for token in askable if token.startswith(SERVICE_TOKEN_PREFIX)}
        sessions = askable - services
        found: dict[str, Identity] = {}
        if sessions:
            self._metrics.verification_queries += 1
            found |= await self._sessions.find(list(sessions))
        if services:
            self._metrics.verification_queries += 1
            found |= await self._services.find(list(services))
        return [found.get(token) for token in tokens]
