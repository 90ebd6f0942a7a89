"""Who may use a relay under test: rows as Better Auth and `relay token service` write them."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

import psycopg
from attrs import frozen
from psycopg import sql

HOUR = timedelta(hours=1)


@frozen
class Accounts:
    """The tables of one database, from outside of relay."""

    url: str

    def session(self, user_id: str = "ann", *, lasts: timedelta = HOUR) -> str:
        """The token of a new session of this user, who is made if need be."""
        token = secrets.token_urlsafe(24)
        self.execute(
            'insert into "user" (id, name, email, "emailVerified") values (%s, %s, %s, true)'
            " on conflict do nothing",
            user_id,
            user_id,
            f"{user_id}@example.org",
        )
        self.execute(
            'insert into session (id, "expiresAt", token, "updatedAt", "userId")'
            " values (%s, now() + %s, %s, now(), %s)",
            f"session-{token[:8]}",
            lasts,
            token,
            user_id,
        )
        return token

    def service(self, *consume: str, alerts: bool = True) -> str:
        """The token of a new service that may watch these streams."""
        token = f"relay_service_{secrets.token_urlsafe(32)}"
        self.execute(
            "insert into relay.service_tokens (token_hash, name, consume, alerts, operate)"
            " values (%s, %s, %s, %s, false)",
            hashlib.sha256(token.encode()).digest(),
            f"service-{token[-8:]}",
            list(consume),
            alerts,
        )
        return token

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement), values or None)
            return cursor.fetchall() if cursor.description else []
