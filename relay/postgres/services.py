"""Service tokens: made once, shown once, kept as a hash in `relay.service_tokens`. Floor 1."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence

import psycopg
from attrs import define

from relay.errors import ConfigError
from relay.model import Service
from relay.postgres.audit import record_change
from relay.postgres.database import Connection, Database

SERVICE_TOKEN_PREFIX = "relay_service_"  # noqa: S105 - how each token begins


@define(eq=False)
class ServiceTokens:
    """Finds and makes the tokens of programs."""

    _database: Database

    async def find(self, tokens: Sequence[str]) -> dict[str, Service]:
        """The service of each token that is known, in one query."""
        by_hash = {_hash(token): token for token in tokens}

        def select(connection: Connection) -> dict[str, Service]:
            rows = connection.execute(
                "select token_hash, name, consume, alerts, operate from relay.service_tokens"
                " where token_hash = any(%s)",
                [list(by_hash)],
            )
            return {
                by_hash[token_hash]: Service(name, frozenset(consume), alerts, operate)
                for token_hash, name, consume, alerts, operate in rows
            }

        return await self._database.transact(select)

    async def create(
        self, name: str, *, consume: Collection[str], alerts: bool, operate: bool
    ) -> str:
        """Make a service and return its token, which is kept nowhere.

        `ConfigError` when there is a service of this name already.
        """
        token = SERVICE_TOKEN_PREFIX + secrets.token_urlsafe(32)

        def insert(connection: Connection) -> None:
            connection.execute(
                "insert into relay.service_tokens (token_hash, name, consume, alerts, operate)"
                " values (%s, %s, %s, %s, %s)",
                [_hash(token), name, sorted(consume), alerts, operate],
            )
            record_change(connection, "service-token", reason="made", service=name)

        try:
            await self._database.transact(insert)
        except psycopg.errors.UniqueViolation:
            raise ConfigError(
                f"there is already a service named {name!r}: choose another name"
            ) from None
        return token


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash. A token from outside may hold lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
