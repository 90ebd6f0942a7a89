"""Where Better Auth keeps users and sessions in this database, and how the columns are named.

Floor 1, a part of `sessions.py`. Better Auth itself names columns `"userId"`, many an ORM
`user_id`; times have a time zone, or have none and then mean UTC, whatever zone the server has.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from attrs import frozen
from psycopg import sql

from relay.errors import ConfigError
from relay.postgres.database import Connection

WITH_ZONE = "timestamp with time zone"
WITHOUT_ZONE = "timestamp without time zone"

# What we call a column, and the names it may have, Better Auth's own first.
USER_COLUMNS = {
    "id": ("id",),
    "name": ("name",),
    "email": ("email",),
    "verified": ("emailVerified", "email_verified"),
    "created": ("createdAt", "created_at"),
    "updated": ("updatedAt", "updated_at"),
    "banned": ("banned",),
    "ban_expires": ("banExpires", "ban_expires"),
}
SESSION_COLUMNS = {
    "id": ("id",),
    "token": ("token",),
    "user": ("userId", "user_id"),
    "expires": ("expiresAt", "expires_at"),
    "created": ("createdAt", "created_at"),
    "updated": ("updatedAt", "updated_at"),
}
# Columns of Better Auth's admin plugin are known by their types, too: the names are anybody's.
ONLY_AS = {"banned": {"boolean"}, "ban_expires": {WITH_ZONE, WITHOUT_ZONE}}
NEEDED_OF_USER = ("id",)
NEEDED_OF_SESSION = ("id", "token", "user", "expires")

WHAT_TO_DO = (
    "Let Better Auth make its tables (npx @better-auth/cli migrate) or name the right ones with the"
    " settings auth_schema, auth_user_table and auth_session_table."
)

# pg_catalog also shows what the role may not read; information_schema would not.
FIND_COLUMNS = """
    select n.nspname, c.relname, a.attname, format_type(a.atttypid, null)
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid
    where c.relname = any(%s) and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname not in ('pg_catalog', 'information_schema')
    and a.attnum > 0 and not a.attisdropped
    order by n.nspname, c.relname, a.attnum
"""


@frozen
class Column:
    """A column that is there."""

    name: str
    type: str

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    def as_instant(self, alias: str) -> sql.Composable:
        """The value of a time column as a `timestamptz`."""
        value = sql.Identifier(alias, self.name)
        if self.type == WITHOUT_ZONE:
            return sql.SQL("({} at time zone 'UTC')").format(value)
        return value

    def stored(self, value: object) -> object:
        """`value` as this column keeps it."""
        if isinstance(value, datetime) and self.type == WITHOUT_ZONE:
            return value.astimezone(UTC).replace(tzinfo=None)
        return value


@frozen
class Table:
    """A table that is there, with those of its columns that mean something to us."""

    schema: str
    name: str
    columns: Mapping[str, Column]
    """By our name for them."""

    def __str__(self) -> str:
        return f'"{self.schema}"."{self.name}"'

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def __getitem__(self, meaning: str) -> Column:
        try:
            return self.columns[meaning]
        except KeyError:
            raise ConfigError(
                f"table {self} has no column that relay takes for {meaning!r}"
            ) from None


@frozen
class AuthTables:
    """Better Auth's tables as they are here."""

    user: Table
    session: Table


def find_tables(
    connection: Connection, *, schema: str, user_table: str, session_table: str
) -> AuthTables:
    """Look at the catalogue. `ConfigError` says what is missing, what is there and what to do."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for namespace, table, column, kind in connection.execute(
        FIND_COLUMNS, [[user_table, session_table]]
    ):
        found.setdefault((namespace, table), {})[column] = kind

    problems: list[str] = []

    def read(name: str, meanings: Mapping[str, tuple[str, ...]], needed: tuple[str, ...]) -> Table:
        types = found.get((schema, name))
        if types is None:
            elsewhere = [other for other, table in found if table == name]
            hint = f" (there is one in {', '.join(elsewhere)})" if elsewhere else ""
            problems.append(f'there is no table "{name}" in schema "{schema}"{hint}')
            return Table(schema, name, {})
        columns = {
            meaning: Column(present, types[present])
            for meaning, names in meanings.items()
            if (present := next((name for name in names if name in types), None))
            and types[present] in ONLY_AS.get(meaning, {types[present]})
        }
        lacking = [" or ".join(meanings[meaning]) for meaning in needed if meaning not in columns]
        if lacking:
            problems.append(
                f'table "{schema}"."{name}" has no column {", ".join(lacking)}'
                f" (it has {', '.join(types)})"
            )
        return Table(schema, name, columns)

    tables = AuthTables(
        read(user_table, USER_COLUMNS, NEEDED_OF_USER),
        read(session_table, SESSION_COLUMNS, NEEDED_OF_SESSION),
    )
    expires = tables.session.columns.get("expires")
    if expires is not None and expires.type not in {WITH_ZONE, WITHOUT_ZONE}:
        problems.append(
            f'column "{expires.name}" of {tables.session} is a {expires.type}, not a timestamp'
        )
    if problems:
        raise ConfigError(
            f"Better Auth's tables are not as needed: {'; '.join(problems)}. {WHAT_TO_DO}"
        )
    return tables
