"""Service tokens: made once, shown once, kept as a hash in `relay.service_tokens`. Floor 1."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import psycopg
from attrs import define

from relay.errors import ConfigError
from relay.model import Service
from relay.postgres.audit import record_change
from relay.postgres.database import Connection, Database
from relay.postgres.text import storable

SERVICE_TOKEN_PREFIX = "relay_service_"  # noqa: S105 - how each token begins


@define(eq=False)
class ServiceTokens:
    """The tokens of programs."""

    _database: Database

    async def find(self, tokens: Sequence[str]) -> dict[str, Service]:
        """The service of each token that is known, in one query."""
        by_hash = {_hash(token): token for token in tokens}
        found = await self.read(list(by_hash))
        return {by_hash[token_hash]: service for token_hash, service in found.items()}

    async def read(self, token_hashes: Sequence[bytes]) -> dict[bytes, Service]:
        """The services as they are now, by the hashes of their tokens, in one query."""

        def select(connection: Connection) -> dict[bytes, Service]:
            rows = connection.execute(
                "select name, consume, alerts, operate, token_hash from relay.service_tokens"
                " where token_hash = any(%s)",
                [list(token_hashes)],
            )
            return {row[4]: _service(row) for row in rows}

        return await self._database.transact(select)

    async def all(self) -> list[tuple[Service, datetime]]:
        """All services by their names, and when each was made."""

        def select(connection: Connection) -> list[tuple[Service, datetime]]:
            rows = connection.execute(
                "select name, consume, alerts, operate, token_hash, created_at"
                " from relay.service_tokens order by name"
            )
            return [(_service(row[:5]), row[5]) for row in rows]

        return await self._database.transact(select)

    async def revoke(self, name: str) -> None:
        """End a service: its token is worth nothing from now on. `ConfigError` if there is none."""

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


def _service(row: Sequence[Any]) -> Service:
    name, consume, alerts, operate, token_hash = row
    return Service(name, frozenset(consume), alerts, operate, token_hash)


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash. A token from outside may hold lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
