"""Better Auth's sessions, read where Better Auth keeps them. Floor 1."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from attrs import define, field
from psycopg import sql

from relay.errors import ConfigError
from relay.model import User
from relay.postgres.auth_tables import AuthTables, Column, Table, find_tables
from relay.postgres.database import Connection, Database
from relay.postgres.text import is_storable

# `least`: Postgres knows later times than Python, infinity among them.
FIND = sql.SQL("""
    select s.{token}, s.{session_id}::text, u.{user_id}::text,
        least({expires}, '9999-12-31 00:00:00+00')
    from {session} s join {user} u on u.{user_id} = s.{user_of_session}
    where s.{token} = any(%s::text[]) and {expires} > now()
""")


async def find_better_auth(
    database: Database,
    *,
    schema: str = "public",
    user_table: str = "user",
    session_table: str = "session",
) -> BetterAuthSessions:
    """Find Better Auth's tables and try them. `ConfigError` says what is missing and what to do."""

    def look(connection: Connection) -> AuthTables:
        tables = find_tables(
            connection, schema=schema, user_table=user_table, session_table=session_table
        )
        connection.execute(_find_statement(tables), [[]])
        return tables

    try:
        return BetterAuthSessions(database, await database.transact(look))
    except psycopg.ProgrammingError as error:
        # The role may not read them, or their columns cannot be compared.
        raise ConfigError(
            f"relay cannot read Better Auth's tables: {error.diag.message_primary}"
        ) from None


@define(eq=False)
class BetterAuthSessions:
    """The sessions of people."""

    _database: Database
    _tables: AuthTables
    _find: sql.Composed = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._find = _find_statement(self._tables)

    async def find(self, tokens: Sequence[str]) -> dict[str, User]:
        """The user of each token whose session has not expired, by the database's clock.

        One query, however many tokens.
        """
        # One token from outside that Postgres cannot take must not fail those of others.
        asked = [token for token in tokens if is_storable(token)]

        def select(connection: Connection) -> dict[str, User]:
            return {
                token: User(user_id=user_id, session_id=session_id, expires_at=expires_at)
                for token, session_id, user_id, expires_at in connection.execute(
                    self._find, [asked]
                )
            }

        return await self._database.transact(select)

    async def create(self, email: str, ttl: timedelta) -> str:
        """For development: make a session, and its user if there is none; return the token.

        `ConfigError` when the tables want values that relay does not know.
        """
        token = _random_id()

        def insert(connection: Connection) -> None:
            (now,) = connection.execute("select now()").fetchall()[0]
            user_id = self._find_user(connection, email)
            if user_id is None:
                self._insert_user(connection, email, now)
                user_id = self._find_user(connection, email)
            values = {
                "token": token,
                "user": user_id,
                "expires": now + ttl,
                "created": now,
                "updated": now,
            }
            _insert(connection, self._tables.session, values)

        try:
            await self._database.transact(insert)
        except psycopg.IntegrityError as error:
            # The rest of what Postgres says quotes values.
            raise ConfigError(
                f"relay cannot make a session: {error.diag.message_primary}"
            ) from None
        return token

    def _find_user(self, connection: Connection, email: str) -> Any:
        user = self._tables.user
        statement = sql.SQL("select {id} from {user} where lower({email}) = lower(%s)").format(
            id=user["id"].identifier, user=user.identifier, email=user["email"].identifier
        )
        row = connection.execute(statement, [email]).fetchone()
        return None if row is None else row[0]

    def _insert_user(self, connection: Connection, email: str, now: datetime) -> None:
        values = {
            "name": email.partition("@")[0],
            "email": email.lower(),
            "verified": True,
            "created": now,
            "updated": now,
        }
        _insert(connection, self._tables.user, values)


def _find_statement(tables: AuthTables) -> sql.Composed:
    user, session = tables.user, tables.session
    return FIND.format(
        token=session["token"].identifier,
        session_id=session["id"].identifier,
        user_id=user["id"].identifier,
        user_of_session=session["user"].identifier,
        expires=session["expires"].as_instant("s"),
        session=session.identifier,
        user=user.identifier,
    )


def _insert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert what the table has columns for; nothing if such a row is there already."""
    given = {**_new_id(table["id"]), **values}
    columns = {meaning: table[meaning] for meaning in given if meaning in table.columns}
    statement = sql.SQL("insert into {} ({}) values ({}) on conflict do nothing").format(
        table.identifier,
        sql.SQL(", ").join(column.identifier for column in columns.values()),
        sql.SQL(", ").join(sql.Placeholder() * len(columns)),
    )
    connection.execute(
        statement, [column.stored(given[meaning]) for meaning, column in columns.items()]
    )


def _new_id(column: Column) -> dict[str, Any]:
    if column.type == "uuid":
        return {"id": uuid.uuid4()}
    if column.type in {"smallint", "integer", "bigint", "numeric"}:
        return {}  # The database counts.
    return {"id": _random_id()}


def _random_id() -> str:
    """32 letters and digits, as Better Auth makes ids and tokens."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))
