"""The table of service tokens: each is shown once and stored as a hash."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from attrs import define

from relay.errors import ConfigError
from relay.model.access.identity import SERVICE_TOKEN_PREFIX, Service
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.audit import record_change
from relay.postgres.tables.sessions.users import BetterAuthUsers

COLUMNS: LiteralString = (
    "name, consume, alerts, operate, token_hash, revoke, produce, user_id, user_is_stored"
)


@define(eq=False, repr=False)
class ServiceTokenTable:
    """The rows of `relay.service_tokens`."""

    _database: Database
    _users: BetterAuthUsers

    async def find(self, tokens: Sequence[str]) -> dict[str, Service]:
        """The service of each valid token, in one query."""
        by_hash = {_hash(token): token for token in tokens}
        found = await self.read(list(by_hash))
        return {by_hash[token_hash]: service for token_hash, service in found.items()}

    async def read(self, token_hashes: Sequence[bytes]) -> dict[bytes, Service]:
        """The services as they are now, by the hashes of their tokens, in one query."""

        def select(connection: Connection) -> dict[bytes, Service]:
            rows = connection.execute(
                f"select {COLUMNS} from relay.service_tokens where token_hash = any(%s)",  # noqa: S608 (constants)
                [list(token_hashes)],
            ).fetchall()
            found = [_service(row) for row in rows]
            user_ids = {each.user_id for each in found if each.user_id is not None}
            banned = self._users.are_banned(connection, list(user_ids)) if user_ids else {}
            return {each.token_hash: each for each in found if _is_valid(each, banned)}

        return await self._database.transact(select)

    async def all(self) -> list[tuple[Service, datetime]]:
        """All services in the order of their names, each with the time it was made."""

        def select(connection: Connection) -> list[tuple[Service, datetime]]:
            rows = connection.execute(
                f"select {COLUMNS}, created_at from relay.service_tokens order by name"  # noqa: S608 (constants)
            )
            return [(_service(row[:-1]), row[-1]) for row in rows]

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
        produce: Collection[str] = (),
        user_id: str | None = None,
    ) -> str:
        """Add a service and return its token, which is not stored. It produces in the name of the
        user, if there is one.

        `ConfigError` when there is a service of this name.
        """
        token = SERVICE_TOKEN_PREFIX + secrets.token_urlsafe(32)

        def insert(connection: Connection) -> None:
            is_stored = user_id is not None and user_id in self._users.are_banned(
                connection, [user_id]
            )
            try:
                connection.execute(
                    "insert into relay.service_tokens (token_hash, name, consume, alerts, operate,"
                    " revoke, produce, user_id, user_is_stored)"
                    " values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    [
                        *(_hash(token), name, sorted(consume), alerts, operate),
                        *(revoke, sorted(produce), user_id, is_stored),
                    ],
                )
            except psycopg.errors.UniqueViolation:
                raise ConfigError(
                    f"there is already a service named {name!r}: choose another name"
                ) from None
            record_change(connection, "service-token", reason="made", service=name)

        await self._database.transact(insert)
        return token


def _service(row: Sequence[Any]) -> Service:
    name, consume, alerts, operate, token_hash, revoke, produce, user_id, is_stored = row
    return Service(
        *(name, frozenset(consume), alerts, operate, token_hash, revoke),
        *(frozenset(produce), user_id, is_stored),
    )


def _is_valid(service: Service, banned: Mapping[str, bool]) -> bool:
    """Whether the user in whose name a service produces is there and not banned. A user who was not
    in the table when the token was made belongs to another issuer, and is never there."""
    if service.user_id is None:
        return True
    return not banned.get(service.user_id, service.user_is_stored)


def _hash(token: str) -> bytes:
    # 256 random bits need no slow hash. A token from outside may hold lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
