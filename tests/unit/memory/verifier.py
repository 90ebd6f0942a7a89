"""A verifier that knows a few tokens, and the feed that tells of changes to their sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from attrs import define, evolve, field

from relay.errors import StoreRejects, StoreUnavailable
from relay.model.access.change import Change
from relay.model.access.identity import Identity, Service, User

ANN, BOB, SENTRY = "token-of-ann", "token-of-bob", "token-of-sentry"
CAMERA = "token-of-camera"
"""Of a service that produces for Ann."""


def user(name: str) -> User:
    return User(name, f"session-of-{name}", datetime.now(UTC) + timedelta(days=1))


@define(eq=False)
class MemoryVerifier:
    """A `Verifier` that can be told to be late, or away. What it answers late it has read early."""

    identities: dict[str, Identity] = field(
        factory=lambda: {
            ANN: user("ann"),
            BOB: user("bob"),
            SENTRY: Service("sentry", frozenset({"*"}), alerts=True, operate=False),
            CAMERA: Service(
                *("camera", frozenset(), False, False, b"camera"),
                produce=frozenset({"porch", "site-a:*"}),
                user_id="ann",
                user_is_stored=True,
            ),
        }
    )
    delay: float = 0.0
    away: bool = False
    broken: bool = False
    clock: Callable[[], datetime] | None = None
    """The database's."""
    readings: int = 0
    grants: dict[str, frozenset[str]] = field(factory=dict)
    """To those whom an issuer vouches for."""
    banned: set[str] = field(factory=set)
    reading_delay: float = 0.0
    unreadable: set[str] = field(factory=set)
    """Session ids that fail a query that reads them."""

    async def verify(self, token: str) -> Identity | None:
        identity = self.identities.get(token)
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        if self.broken:
            raise RuntimeError("a bug in verification")
        return None if identity is None else self._at_this_moment(identity)

    def _at_this_moment(self, identity: Identity) -> Identity:
        if self.clock is None or not isinstance(identity, User):
            return identity
        left = (identity.expires_at - self.clock()).total_seconds()
        return evolve(identity, remaining=left)

    async def read(self, keys: Sequence[Any]) -> dict[Any, Any]:
        """The sessions of these ids, and the services of these hashes, that are left."""
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        self.readings += 1
        if self.unreadable & set(keys):
            raise StoreRejects
        now: dict[Any, Identity] = {
            each.session_id if isinstance(each, User) else each.token_hash: each
            for each in map(self._at_this_moment, self.identities.values())
        }
        await trio.sleep(self.reading_delay)
        return {key: now[key] for key in keys if key in now}

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        return {
            user_id: self.grants.get(user_id, frozenset())
            for user_id in user_ids
            if user_id not in self.banned
        }


@define(eq=False)
class MemoryChangeFeed:
    """Notifications of changes, and the connection that receives them."""

    installed_: bool = True
    away: bool = False
    probes: int = 0
    attempts: int = 0
    """To listen."""
    _put: trio.MemorySendChannel[Change | None] = field(init=False)
    _get: trio.MemoryReceiveChannel[Change | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(1000)

    def tell(self, *changes: Change) -> None:
        for change in changes:
            self._put.send_nowait(change)

    def lose(self) -> None:
        """Lose the connection, and what is told until there is another."""
        self.away = True
        self._put.send_nowait(None)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[MemoryChangeFeed]:
        self.attempts += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        yield self

    async def receive(self) -> list[Change]:
        change = await self._get.receive()
        if change is None:
            raise StoreUnavailable
        return [change]

    async def probe(self) -> bool:
        self.probes += 1
        await trio.lowlevel.checkpoint()
        return True

    async def installed(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.installed_
