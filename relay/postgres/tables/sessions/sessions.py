"""The sessions and users of Better Auth, read from its own tables."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog
import trio
from attrs import define, field
from psycopg import sql

from relay.errors import ConfigError, StoreForbids, StoreLacks, StoreRejects, StoreUnavailable
from relay.model.access.identity import NO_STREAMS, User
from relay.model.access.person import Person
from relay.model.access.token_digest import token_digest
from relay.model.suspicion import Suspicion
from relay.postgres.database import Connection, Database
from relay.postgres.statement import Statement
from relay.postgres.tables.sessions.better_auth import (
    INTEGER_TYPES,
    WITHOUT_ZONE,
    AuthColumn,
    AuthNames,
    AuthTable,
    AuthTables,
    find_tables,
    postgres_zone,
)
from relay.postgres.tables.sessions.local_times import NEWEST_SESSIONS, LocalTimes
from relay.postgres.tables.sessions.session_rows import find_end_marks, find_hidden, find_suspicions
from relay.postgres.tables.sessions.token_storage import BYTES, StoredTokens
from relay.postgres.tables.sessions.users import NOW, BetterAuthUsers, is_banned
from relay.settings.tokens import TokenStorage

# A session without an expiry has expired.
SELECT_USERS = sql.SQL("""
    select {token}, {session_id}, {user_id},
        coalesce({expires}, {never}),
        extract(epoch from coalesce({expires}, {never}) - {now})::float8,
        array(select g.stream_id from relay.grants g where g.user_id = {user_id}),
        {created}
    from {session} s join {user} u on {are_joined}
    where {session_id} is not null and not {banned} and
""")
NEVER = sql.SQL("timestamptz '1970-01-01 00:00:00+00'")
HIDDEN_CHECK_INTERVAL = 5.0
"""Seconds between looks at whether rows are hidden, while none is found."""

log = structlog.get_logger()


async def find_better_auth(
    database: Database,
    *,
    schema: str = "public",
    user_table: str = "user",
    session_table: str = "session",
    user_columns: Mapping[str, str] | None = None,
    session_columns: Mapping[str, str] | None = None,
    time_zone: str = "UTC",
    token_storage: TokenStorage = "plain",  # noqa: S107 (no secret)
) -> BetterAuthSessions:
    """Find Better Auth's tables and try them. `ConfigError` says what is missing and what to do.

    `user_columns` and `session_columns` name columns by Better Auth's own names for them, where
    they are called otherwise; `time_zone` is that of times without one, and
    `token_storage` is how tokens are stored.
    """
    names = AuthNames(
        schema, user_table, session_table, user_columns or {}, session_columns or {}, time_zone
    )

    def look(connection: Connection) -> AuthTables:
        tables = find_tables(connection, names)
        connection.execute("select now() at time zone %s", [postgres_zone(time_zone)])
        connection.execute(_find_statement(tables), [[]])
        connection.execute(_read_statement(tables), [[]])
        return tables

    try:
        return BetterAuthSessions(database, await database.transact(look), token_storage)
    except (StoreForbids, StoreLacks) as error:
        raise ConfigError(f"relay cannot read Better Auth's tables: {error}") from None
    except StoreRejects:
        raise ConfigError(
            f"relay cannot read Better Auth's tables: is {time_zone!r} (auth_time_zone) a time"
            " zone that PostgreSQL knows?"
        ) from None
    except psycopg.ProgrammingError as error:  # their columns cannot be compared
        raise ConfigError(
            f"relay cannot read Better Auth's tables: {error.diag.message_primary}"
        ) from None


@define(eq=False, repr=False)
class BetterAuthSessions:
    """The sessions of users."""

    _database: Database
    tables: AuthTables
    _token_storage: TokenStorage = "plain"  # noqa: S105 (no secret)
    users: BetterAuthUsers = field(init=False)
    _stored: StoredTokens = field(init=False)
    _find: Statement = field(init=False)
    _read: Statement = field(init=False)
    _local_times: LocalTimes = field(init=False)
    _hidden: Suspicion | None = None
    """Row level security that hides all rows, as last seen."""
    _hidden_checked_at: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self.users = BetterAuthUsers(self._database, self.tables.user)
        self._stored = StoredTokens(self._token_storage, self.tables.session["token"])
        self._find = Statement(_find_statement(self.tables))
        self._read = Statement(_read_statement(self.tables))
        self._local_times = LocalTimes(self.tables.session["expires"].time_zone)

    async def find(self, tokens: Sequence[str]) -> dict[str, User]:
        """The user of each token whose session has not expired, by the database's clock.

        One query for any number of tokens. Users that Better Auth's admin plugin has banned are
        not found. `StoreUnavailable` while row level security hides all rows.
        """
        stored = {form: token for token in tokens for form in self._stored.forms(token)}
        rows = await self._select(self._find, [*stored], self.tables.session["token"])
        for row in rows:
            self._local_times.note(*row[-1])
        return {
            (token := stored[form]): _user(rest, token_digest(token).hex())
            for form, *rest in rows
            if form in stored
        }

    async def read(self, session_ids: Sequence[str]) -> dict[str, User]:
        """The sessions of these ids as they are now, also expired ones, in one query."""
        rows = await self._select(self._read, session_ids, self.tables.session["id"])
        return {user.session_id: user for user in (_user(rest) for _, *rest in rows)}

    async def _select(
        self, statement: Statement, texts: Sequence[str], column: AuthColumn
    ) -> list[Any]:
        """The rows of some values of a column. One that Postgres cannot take must not fail the
        whole query."""
        asked = [each for each in texts if self._database.can_hold(each) and column.can_hold(each)]
        check = trio.current_time() >= self._hidden_checked_at + HIDDEN_CHECK_INTERVAL

        def select(connection: Connection) -> tuple[list[Any], Suspicion | None]:
            rows = connection.execute(statement.text(connection), [asked]).fetchall()
            hidden = None if rows else self._hidden
            if check and not rows:
                hidden = find_hidden(connection, self.tables)
            return rows, hidden

        rows, hidden = await self._database.transact(select)
        if check and not rows:
            self._hidden_checked_at = trio.current_time()
        if hidden is not None and self._hidden is None:
            log.warning("no token can be verified", why=hidden.said, do=hidden.do)
        self._hidden = hidden
        if hidden is not None:
            raise StoreUnavailable(hidden.said)
        return rows

    async def suspicions(self) -> list[Suspicion]:
        """What makes it unlikely that the table has the sessions of anybody's tokens."""
        return await self._database.transact(
            lambda connection: find_suspicions(connection, self.tables, self._token_storage)
        )

    async def end_marks(self) -> Suspicion | None:
        """Find columns that may mark ended sessions; see `find_end_marks`."""
        return await self._database.transact(
            lambda connection: find_end_marks(connection, self.tables.session)
        )

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """See `BetterAuthUsers.granted_to`."""
        return await self.users.granted_to(user_ids)

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """See `BetterAuthUsers.deleted_among`."""
        return await self.users.deleted_among(user_ids)

    async def people(self, user_ids: Sequence[str]) -> dict[str, Person]:
        """See `BetterAuthUsers.people`."""
        return await self.users.people(user_ids)

    async def find_user(self, name: str) -> str:
        """See `BetterAuthUsers.find_user`."""
        return await self.users.find_user(name)

    async def newest_ages(self) -> list[float]:
        """Seconds since the newest sessions were made, the newest first, if that is told without a
        time zone; negative for those that seem to be made in the future."""
        column = self.tables.session.columns.get("created")
        if column is None or column.type != WITHOUT_ZONE:
            return []
        newest = sql.SQL(
            "select extract(epoch from {} - {})::float8 from {} s where {} is not null"
            " order by {} desc limit {}"
        ).format(
            NOW,
            column.as_instant("s"),
            self.tables.session.identifier,
            column.of("s"),
            column.of("s"),
            NEWEST_SESSIONS,
        )
        rows = await self._database.transact(
            lambda connection: connection.execute(newest).fetchall()
        )
        return [float(age) for (age,) in rows]

    async def create(self, email: str, ttl: timedelta) -> str:
        """Make a session for development, and its user if there is none; return the token.

        `ConfigError` when the tables want values that relay does not know.
        """
        token = _random_id()

        def insert(connection: Connection) -> None:
            (now,) = connection.execute("select now()").fetchall()[0]
            user_id = self._find_user(connection, email)
            if user_id is None:
                self._insert_user(connection, email, now)
                user_id = self._find_user(connection, email)
            (form, *_) = self._stored.forms(token)
            is_bytes = self.tables.session["token"].type == BYTES
            values = {
                "token": bytes.fromhex(form.removeprefix("\\x")) if is_bytes else form,
                "user": user_id,
                "expires": now + ttl,
                "created": now,
                "updated": now,
            }
            _insert(connection, self.tables.session, values)

        def try_to_insert(connection: Connection) -> None:
            try:
                insert(connection)
            except psycopg.IntegrityError as error:
                # The rest of what Postgres says quotes values.
                raise ConfigError(
                    f"relay cannot create a session: {error.diag.message_primary}"
                ) from None

        await self._database.transact(try_to_insert)
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
    condition = sql.SQL("{} and {} > {}").format(
        session["token"].is_any("s"), session["expires"].as_instant("s"), NOW
    )
    return _users(tables) + condition


def _read_statement(tables: AuthTables) -> sql.Composed:
    return _users(tables) + tables.session["id"].is_any("s")


def _users(tables: AuthTables) -> sql.Composed:
    user, session = tables.user, tables.session
    return SELECT_USERS.format(
        token=session["token"].as_text("s"),
        session_id=session["id"].as_text("s"),
        user_id=user["id"].as_text("u"),
        are_joined=tables.are_joined,
        expires=session["expires"].as_instant("s"),
        never=NEVER,
        created=_created(session),
        now=NOW,
        session=session.identifier,
        user=user.identifier,
        banned=is_banned(user),
    )


def _created(session: AuthTable) -> sql.Composable:
    """When a session was made, and how long before now, as seconds; for `LocalTimes`."""
    column = session.columns.get("created")
    if column is None or column.type != WITHOUT_ZONE:
        return sql.SQL("array[null, null]::float8[]")
    return sql.SQL(
        "array[extract(epoch from {created}), extract(epoch from {now} - {created})]::float8[]"
    ).format(created=column.as_instant("s"), now=NOW)


def _user(row: Sequence[Any], token_hash: str = "") -> User:
    session_id, user_id, expires_at, remaining, granted, _created = row
    streams = frozenset(granted) if granted else NO_STREAMS
    return User(
        user_id, session_id, expires_at, streams, remaining=remaining, token_hash=token_hash
    )


def _insert(connection: Connection, table: AuthTable, values: Mapping[str, Any]) -> None:
    """Insert the values that the table has columns for; nothing if there is such a row."""
    given = {**_new_id(table["id"]), **values}
    columns = {meaning: table[meaning] for meaning in given if meaning in table.columns}
    statement = sql.SQL("insert into {} ({}) values ({}) on conflict do nothing").format(
        table.identifier,
        sql.SQL(", ").join(column.identifier for column in columns.values()),
        sql.SQL(", ").join(column.placeholder() for column in columns.values()),
    )
    connection.execute(statement, [given[meaning] for meaning in columns])


def _new_id(column: AuthColumn) -> dict[str, Any]:
    if column.type == "uuid":
        return {"id": uuid.uuid4()}
    if column.type in {*INTEGER_TYPES, "numeric"}:
        return {}  # the database numbers its rows
    return {"id": _random_id()}


def _random_id() -> str:
    """32 letters and digits, as Better Auth makes ids and tokens."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))
