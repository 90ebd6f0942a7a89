"""Who may use a relay under test: rows as Better Auth and `relay token service` write them."""

from __future__ import annotations

import hashlib
import secrets
import select
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from threading import Lock
from typing import Any

import psycopg
from attrs import define, field, frozen
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
        with _connect(self.url) as connection:
            cursor = connection.execute(sql.SQL(statement), values or None)
            return cursor.fetchall() if cursor.description else []


@define(eq=False)
class _KeptConnection:
    """The connection to a database in which `Accounts` run their statements, one at a time."""

    _url: str
    lock: Lock = field(factory=Lock)
    _connection: psycopg.Connection | None = None

    def open(self) -> psycopg.Connection:
        """The one that there is, unless the test has ended it."""
        if self._connection is not None and not _is_idle(self._connection):
            self.close()
        if self._connection is None:
            # A test may change the columns of what was prepared.
            self._connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=None)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


_kept: dict[str, _KeptConnection] = {}


@contextmanager
def keep_connection(url: str) -> Iterator[None]:
    """While the block lasts, `Accounts` of this database share a connection: to open one takes the
    server ten times as long as a statement."""
    kept = _kept[url] = _KeptConnection(url)
    try:
        yield
    finally:
        del _kept[url]
        kept.close()


@contextmanager
def _connect(url: str) -> Iterator[psycopg.Connection]:
    kept = _kept.get(url)
    if kept is not None and kept.lock.acquire(blocking=False):  # not where it waits for a lock
        try:
            yield kept.open()
        finally:
            kept.lock.release()
        return
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        yield connection


def _is_idle(connection: psycopg.Connection) -> bool:
    """Whether nothing has come since the last statement, such as the end."""
    if connection.closed:
        return False
    look = select.poll()
    look.register(connection, select.POLLIN)
    return not look.poll(0)
