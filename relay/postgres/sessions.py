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

from relay.errors import ConfigError, StoreForbids
from relay.model import User
from relay.postgres.auth_tables import AuthTables, Column, Table, find_tables
from relay.postgres.database import Connection, Database
from relay.postgres.text import is_storable, storable

# `least`: Postgres knows later times than Python, infinity among them.
USERS = sql.SQL("""
    select s.{token}, s.{session_id}::text, u.{user_id}::text,
        least({expires}, {latest}), extract(epoch from least({expires}, {latest}) - {now})::float8,
        array(select g.stream_id from relay.grants g where g.user_id = u.{user_id}::text)
    from {session} s join {user} u on u.{user_id} = s.{user_of_session}
    where not {banned} and
""")
LATEST = sql.SQL("timestamptz '9999-12-31 00:00:00+00'")
NOW = sql.SQL("clock_timestamp()")


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
        connection.execute(_read_statement(tables), [[]])
        return tables

    try:
        return BetterAuthSessions(database, await database.transact(look))
    except StoreForbids as error:
        raise ConfigError(f"relay cannot read Better Auth's tables: {error}") from None
    except psycopg.ProgrammingError as error:  # their columns cannot be compared
        raise ConfigError(
            f"relay cannot read Better Auth's tables: {error.diag.message_primary}"
        ) from None


@define(eq=False)
class BetterAuthSessions:
    """The sessions of people."""

    _database: Database
    tables: AuthTables
    _find: sql.Composed = field(init=False)
    _read: sql.Composed = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._find = _find_statement(self.tables)
        self._read = _read_statement(self.tables)

    async def find(self, tokens: Sequence[str]) -> dict[str, User]:
        """The user of each token whose session has not expired, by the database's clock.

        One query, however many tokens. Who is banned, by Better Auth's admin plugin, is not found.
        """
        # One token from outside that Postgres cannot take must not fail those of others.
        asked = [token for token in tokens if is_storable(token)]
        rows = await self._database.transact(
            lambda connection: connection.execute(self._find, [asked]).fetchall()
        )
        return {token: _user(rest) for token, *rest in rows}

    async def read(self, session_ids: Sequence[str]) -> dict[str, User]:
        """The sessions of these ids as they are now, in one query; also those that have expired."""
        rows = await self._database.transact(
            lambda connection: connection.execute(self._read, [list(session_ids)]).fetchall()
        )
        return {user.session_id: user for user in (_user(rest) for _, *rest in rows)}

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """What each user may watch of others' streams; for those that something else than a session
        vouches for. Users that are banned here are left out."""
        asked = [user_id for user_id in user_ids if is_storable(user_id)]
        column = self.tables.user["id"]
        banned_of = sql.SQL(
            "select u.{id}::text from {user} u where u.{id}::text = any(%s)"
        ).format(id=column.identifier, user=self.tables.user.identifier) + sql.SQL(
            " and {}"
        ).format(_banned(self.tables.user))

        def select(connection: Connection) -> dict[str, frozenset[str]]:
            grants = connection.execute(
                "select user_id, array_agg(stream_id) from relay.grants where user_id = any(%s)"
                " group by user_id",
                [asked],
            )
            found = dict.fromkeys(asked, frozenset[str]())
            found |= {user_id: frozenset(stream_ids) for user_id, stream_ids in grants}
            if "banned" in self.tables.user.columns:
                for (user_id,) in connection.execute(banned_of, [asked]):
                    found.pop(user_id, None)
            return found

        return await self._database.transact(select)

    async def find_user(self, name: str) -> str:
        """The id of the user of this id or e-mail address; `ConfigError` if there is none."""
        user = self.tables.user
        columns = [user["id"].identifier]
        if "email" in user.columns:
            columns.append(user["email"].identifier)
        matches = sql.SQL(" or ").join(
            sql.SQL("lower({}::text) = lower({name})").format(column, name=sql.Placeholder("name"))
            for column in columns
        )
        statement = sql.SQL(
            "select {id}::text from {user} where {matches} order by {id}::text = {name} desc"
        ).format(
            id=user["id"].identifier,
            user=user.identifier,
            matches=matches,
            name=sql.Placeholder("name"),
        )
        rows = await self._database.transact(
            lambda connection: connection.execute(statement, {"name": storable(name)}).fetchall()
        )
        if not rows:
            raise ConfigError(f"there is no user {name!r}: give an id or an e-mail address")
        if len(rows) > 1 and rows[0][0] != name:
            raise ConfigError(f"there are {len(rows)} users {name!r}: give an id")
        return str(rows[0][0])

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
            _insert(connection, self.tables.session, values)

        try:
            await self._database.transact(insert)
        except psycopg.IntegrityError as error:
            # The rest of what Postgres says quotes values.
            raise ConfigError(
                f"relay cannot make a session: {error.diag.message_primary}"
            ) from None
        return token

    def _find_user(self, connection: Connection, email: str) -> Any:
        user = self.tables.user
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
        _insert(connection, self.tables.user, values)


def _find_statement(tables: AuthTables) -> sql.Composed:
    session = tables.session
    condition = sql.SQL("s.{} = any(%s::text[]) and {} > {}").format(
        session["token"].identifier, session["expires"].as_instant("s"), NOW
    )
    return _users(tables) + condition


def _read_statement(tables: AuthTables) -> sql.Composed:
    # As the column's own type, so that its index is used.
    column = tables.session["id"]
    condition = sql.SQL("s.{} = any(%s::text[]::{}[])").format(
        column.identifier, sql.SQL(column.type)
    )
    return _users(tables) + condition


def _users(tables: AuthTables) -> sql.Composed:
    user, session = tables.user, tables.session
    return USERS.format(
        token=session["token"].identifier,
        session_id=session["id"].identifier,
        user_id=user["id"].identifier,
        user_of_session=session["user"].identifier,
        expires=session["expires"].as_instant("s"),
        latest=LATEST,
        now=NOW,
        session=session.identifier,
        user=user.identifier,
        banned=_banned(user),
    )


def _banned(user: Table) -> sql.Composable:
    """Whether a user is banned at this moment."""
    if "banned" not in user.columns:
        return sql.SQL("false")
    banned = sql.SQL("coalesce(u.{}, false)").format(user["banned"].identifier)
    if "ban_expires" not in user.columns:
        return banned
    until = user["ban_expires"].as_instant("u")
    return sql.SQL("({} and coalesce({} > {}, true))").format(banned, until, NOW)


def _user(row: Sequence[Any]) -> User:
    session_id, user_id, expires_at, remaining, granted = row
    return User(user_id, session_id, expires_at, frozenset(granted), remaining=remaining)


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
