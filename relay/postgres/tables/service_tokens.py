"""The table of service tokens: each is shown once and stored as a hash."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import psycopg
from attrs import define

from relay.errors import ConfigError
from relay.model.identity import SERVICE_TOKEN_PREFIX, Service
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.audit import record_change


@define(eq=False)
class ServiceTokenTable:
    """The rows of `relay.service_tokens`."""

    _database: Database

    async def find(self, tokens: Sequence[str]) -> dict[str, Service]:
        """The service of each valid token, in one query."""
        by_hash = {_hash(token): token for token in tokens}
        found = await self.read(list(by_hash))
        return {by_hash[token_hash]: service for token_hash, service in found.items()}

    async def read(self, token_hashes: Sequence[bytes]) -> dict[bytes, Service]:
        """The services as they are now, by the hashes of their tokens, in one query."""

        def select(connection: Connection) -> dict[bytes, Service]:
            rows = connection.execute(
                "select name, consume, alerts, operate, token_hash, revoke"
                " from relay.service_tokens where token_hash = any(%s)",
                [list(token_hashes)],
            )
            return {row[4]: _service(row) for row in rows}

        return await self._database.transact(select)

    async def all(self) -> list[tuple[Service, datetime]]:
        """All services in the order of their names, each with the time it was made."""

        def select(connection: Connection) -> list[tuple[Service, datetime]]:
            rows = connection.execute(
                "select name, consume, alerts, operate, token_hash, revoke, created_at"
                " from relay.service_tokens order by name"
            )
            return [(_service(row[:6]), row[6]) for row in rows]

        return await self._database.transact(select)

    async def revoke(self, name: str) -> None:
        """Remove a service, which invalidates its token. `ConfigError` if there is none."""

        def delete(connection: Connection) -> int:
            ended = connection.execute(
                "delete from relay.service_tokens where name = %s", [storable(name)]
            ).rowcount
            if ended:
                record_change(connection, "service-token", reason="revoked", service=name)
            return ended

        if not await self._database.transact(delete):
            raise ConfigError(f"there is no service named {name!r}; `relay token list` shows all")

    async def create(
        self,
        name: str,
        *,
        consume: Collection[str],
        alerts: bool,
        operate: bool,
        revoke: bool = False,
    ) -> str:
        """Add a service and return its token, which is not stored.

        `ConfigError` when there is a service of this name.
        """
        token = SERVICE_TOKEN_PREFIX + secrets.token_urlsafe(32)

        def insert(connection: Connection) -> None:
            try:
                connection.execute(
                    "insert into relay.service_tokens"
                    " (token_hash, name, consume, alerts, operate, revoke)"
                    " values (%s, %s, %s, %s, %s, %s)",
                    [_hash(token), name, sorted(consume), alerts, operate, revoke],
                )
            except psycopg.errors.UniqueViolation:
                raise ConfigError(
                    f"there is already a service named {name!r}: choose another name"
                ) from None
            record_change(connection, "service-token", reason="made", service=name)

        await self._database.transact(insert)
        return token


def _service(row: Sequence[Any]) -> Service:
    name, consume, alerts, operate, token_hash, revoke = row
    return Service(name, frozenset(consume), alerts, operate, token_hash, revoke)


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash. A token from outside may hold lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
