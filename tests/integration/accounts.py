"""Who may use a relay under test: rows as Better Auth and `relay token service` write them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
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
        (token,) = self.sessions([user_id], lasts=lasts)
        return token

    def sessions(self, user_ids: Sequence[str], *, lasts: timedelta = HOUR) -> list[str]:
        """`session` for many users."""
        tokens = [secrets.token_urlsafe(24) for _ in user_ids]
        self.execute(
            'with users as (insert into "user" (id, name, email, "emailVerified")'
            " select id, id, id || '@example.org', true from unnest(%s::text[]) as id"
            " on conflict do nothing)"
            ' insert into session (id, "expiresAt", token, "updatedAt", "userId")'
            " select 'session-' || substr(token, 1, 8), now() + %s, token, now(), user_id"
            " from unnest(%s::text[], %s::text[]) as given (token, user_id)",
            list(user_ids),
            lasts,
            tokens,
            list(user_ids),
        )
        return tokens

    def service(
        self,
        *consume: str,
        alerts: bool = True,
        operate: bool = False,
        produce: Sequence[str] = (),
        user_id: str | None = None,
    ) -> str:
        """The token of a new service that may watch these streams, and produce those in the name
        of a user."""
        token = f"relay_service_{secrets.token_urlsafe(32)}"
        self.execute(
            "insert into relay.service_tokens (token_hash, name, consume, alerts, operate, produce,"
            " user_id, user_is_stored) values (%s, %s, %s, %s, %s, %s, %s, exists ("
            'select from "user" where id = %s))',
            hashlib.sha256(token.encode()).digest(),
            f"service-{token[-8:]}",
            list(consume),
            alerts,
            operate,
            list(produce),
            user_id,
            user_id,
        )
        return token

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement; returns its rows, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL(statement), values or None)
            return cursor.fetchall() if cursor.description else []
