"""Finds the tables and columns in which Better Auth keeps users and sessions.

A part of `sessions.py`. Better Auth itself names columns `"userId"`, some ORMs `user_id`, and
settings can name others. Times without a time zone are in `auth_time_zone`, whatever zone the
server has. Ids and tokens are read as text, whatever type they have, and looked up by a value of
that type, so that their index is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from uuid import UUID

from attrs import field, frozen
from psycopg import sql

from relay.errors import ConfigError
from relay.postgres.database import Connection

WITH_ZONE = "timestamp with time zone"
WITHOUT_ZONE = "timestamp without time zone"

TEXTS = frozenset({"text", "character varying"})
PADDED_TEXT = "bpchar"
"""`char(n)` of any length; `character` would be of one letter."""
INTEGER_TYPES = {"smallint": 16, "integer": 32, "bigint": 64}
"""With their bits."""

# Our name of each column, and the names it may have, Better Auth's own first.
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
# The names of the admin plugin's columns are common, so their types have to match, too.
REQUIRED_TYPES = {"banned": {"boolean"}, "ban_expires": {WITH_ZONE, WITHOUT_ZONE}}
DISPENSABLE_COLUMNS = {"created"}
"""Columns that relay does without where this role may not read them."""
REQUIRED_USER_COLUMNS = ("id",)
REQUIRED_SESSION_COLUMNS = ("id", "token", "user", "expires")

WHAT_TO_DO = (
    "Let Better Auth make its tables (npx @better-auth/cli migrate) or name the right ones with the"
    " settings auth_schema, auth_user_table and auth_session_table, and their columns with"
    " auth_user_columns and auth_session_columns."
)

SESSIONS_ELSEWHERE = (
    " If Better Auth keeps its sessions elsewhere (secondaryStorage), set auth_session_url to the"
    " URL of its get-session."
)

_OFFSET = re.compile(r"(?:UTC|GMT)?([+-]?)([0-9]{1,2})(?::?([0-9]{2}))?", re.IGNORECASE)

BOUNDED = sql.SQL("greatest(least({}, '9999-12-31 00:00:00+00'), '1970-01-01 00:00:00+00')")
# A day less, so that it is before the year 10000 in every zone.
BOUNDED_LOCAL = sql.SQL("greatest(least({}, '9999-12-30 00:00:00'), '1970-01-02 00:00:00')")

# pg_catalog also shows what the role may not read; information_schema would not.
# The type of a domain is the type that it stands for.
FIND_COLUMNS = """
    select n.nspname, c.relname, a.attname, format_type(base.type, -1),
        has_column_privilege(c.oid, a.attnum, 'select')
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_attribute a on a.attrelid = c.oid
    cross join lateral (
        with recursive stands_for (type, next) as (
            select t.oid, t.typbasetype from pg_catalog.pg_type t where t.oid = a.atttypid
            union all
            select t.oid, t.typbasetype from pg_catalog.pg_type t
            join stands_for on t.oid = stands_for.next
        )
        select type from stands_for where next = 0
    ) as base
    where c.relname = any(%s) and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname not in ('pg_catalog', 'information_schema')
    and a.attnum > 0 and not a.attisdropped
    order by n.nspname, c.relname, a.attnum
"""


@frozen
class AuthColumn:
    """A column that exists."""

    name: str
    type: str
    """Without a length; of a domain, the type that it stands for."""
    time_zone: str = "UTC"
    """Of times without a zone."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    @property
    def _zone(self) -> sql.Literal:
        return sql.Literal(postgres_zone(self.time_zone))

    def of(self, alias: str) -> sql.Composed:
        return sql.SQL("{}").format(sql.Identifier(alias, self.name))

    def as_text(self, alias: str) -> sql.Composed:
        return sql.SQL("{}::text").format(self.of(alias))

    def is_any(self, alias: str) -> sql.Composed:
        """Whether the value is one of a parameter, a list of text: see `can_hold`."""
        if self.type in TEXTS:
            return sql.SQL("{} = any(%s::text[])").format(self.of(alias))
        if self.type in {PADDED_TEXT, "uuid", "bytea", *INTEGER_TYPES}:
            kind = sql.SQL(self.type)
            return sql.SQL("{} = any(%s::text[]::{}[])").format(self.of(alias), kind)
        return sql.SQL("{} = any(%s::text[])").format(self.as_text(alias))

    def can_hold(self, text: str) -> bool:
        """Whether a value of this column can be this one, as text. Another one could fail the
        statement that asks for it."""
        if self.type == "uuid":
            return len(text) == len(str(UUID(int=0))) and _is_uuid(text)
        if self.type == "bytea":
            return re.fullmatch(r"\\x([0-9a-f]{2})*", text) is not None
        if self.type in INTEGER_TYPES:
            return _is_integer(text, INTEGER_TYPES[self.type])
        return True

    def as_instant(self, alias: str) -> sql.Composed:
        """The value of a time column, as a `timestamptz` that Python knows: Postgres has infinite
        times, and years beyond 9999."""
        within = sql.SQL("case when {value} is not null then {within} end")
        value = self.of(alias)
        if self.type == WITHOUT_ZONE:
            local = within.format(value=value, within=BOUNDED_LOCAL.format(value))
            return sql.SQL("({} at time zone {})").format(local, self._zone)
        return sql.SQL("({})").format(within.format(value=value, within=BOUNDED.format(value)))

    def placeholder(self) -> sql.Composable:
        """A parameter for a value of this column; of a time column, a `timestamptz`."""
        if self.type == WITHOUT_ZONE:
            return sql.SQL("(%s::timestamptz at time zone {})").format(self._zone)
        return sql.Placeholder()


@frozen
class AuthTable:
    """A table that exists, with the columns that relay uses."""

    schema: str
    name: str
    columns: Mapping[str, AuthColumn]
    """By our names."""

    def __str__(self) -> str:
        return f'"{self.schema}"."{self.name}"'

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def __getitem__(self, meaning: str) -> AuthColumn:
        try:
            return self.columns[meaning]
        except KeyError:
            raise ConfigError(
                f"table {self} has no column that relay takes for {meaning!r}"
            ) from None


@frozen
class AuthTables:
    """Better Auth's tables in this database."""

    user: AuthTable
    session: AuthTable

    @property
    def are_joined(self) -> sql.Composed:
        """Whether a user `u` is that of a session `s`. Their columns may have different types."""
        user, session = self.user["id"], self.session["user"]
        same = any({user.type, session.type} <= kinds for kinds in (TEXTS, INTEGER_TYPES.keys()))
        if same or user.type == session.type:
            return sql.SQL("{} = {}").format(user.of("u"), session.of("s"))
        text = session.as_text("s")
        if user.type in TEXTS:
            return sql.SQL("{} = {}").format(user.of("u"), text)
        if user.type == PADDED_TEXT:
            return sql.SQL("{} = {}::bpchar").format(user.of("u"), text)
        return sql.SQL("{} = {}").format(user.as_text("u"), text)


@frozen
class AuthNames:
    """How Better Auth's tables and columns are named, by the settings."""

    schema: str
    user_table: str
    session_table: str
    user_columns: Mapping[str, str]
    """The names of columns that have others than usual, by Better Auth's own."""
    session_columns: Mapping[str, str]
    time_zone: str


def find_tables(connection: Connection, names: AuthNames) -> AuthTables:
    """Read the catalogue. `ConfigError` says what is missing, what exists, and what to do."""
    catalogue = _Catalogue.read(connection, names)
    tables = AuthTables(
        catalogue.user(),
        catalogue.table(
            names.session_table, SESSION_COLUMNS, REQUIRED_SESSION_COLUMNS, names.session_columns
        ),
    )
    problems = catalogue.problems
    expires = tables.session.columns.get("expires")
    if expires is not None and expires.type not in {WITH_ZONE, WITHOUT_ZONE}:
        problems.append(
            f'column "{expires.name}" of {tables.session} is a {expires.type}, not a timestamp'
        )
    if problems:
        elsewhere = "" if tables.session.columns else SESSIONS_ELSEWHERE
        raise ConfigError(
            f"Better Auth's tables are not as needed: {'; '.join(problems)}."
            f" {WHAT_TO_DO}{elsewhere}"
        )
    return tables


def find_user_table(connection: Connection, names: AuthNames) -> AuthTable | None:
    """The table of users if sessions are outside the database; None if it is missing, too."""
    catalogue = _Catalogue.read(connection, names)
    table = catalogue.user()
    return None if catalogue.problems else table


@frozen
class _Catalogue:
    """The columns of the tables that have one of the names."""

    names: AuthNames
    found: Mapping[tuple[str, str], Mapping[str, str]]
    """The type of each column, by schema and table."""
    unreadable: frozenset[tuple[str, str]]
    """Tables and columns that this role may not read."""
    problems: list[str] = field(factory=list)

    @classmethod
    def read(cls, connection: Connection, names: AuthNames) -> _Catalogue:
        found: dict[tuple[str, str], dict[str, str]] = {}
        unreadable: set[tuple[str, str]] = set()
        for namespace, table, column, kind, readable in connection.execute(
            FIND_COLUMNS, [[names.user_table, names.session_table]]
        ):
            found.setdefault((namespace, table), {})[column] = kind
            if not readable:
                unreadable.add((table, column))
        return cls(names, found, frozenset(unreadable))

    def user(self) -> AuthTable:
        names = self.names
        return self.table(names.user_table, USER_COLUMNS, REQUIRED_USER_COLUMNS, names.user_columns)

    def table(
        self,
        name: str,
        meanings: Mapping[str, tuple[str, ...]],
        needed: tuple[str, ...],
        given: Mapping[str, str],
    ) -> AuthTable:
        """A table with the columns that it has; `problems` say what is missing."""
        schema = self.names.schema
        needed += tuple(each for each, usual in meanings.items() if usual[0] in given)
        meanings = {
            meaning: (given[usual[0]],) if usual[0] in given else usual
            for meaning, usual in meanings.items()
        }
        types = self.found.get((schema, name))
        if types is None:
            elsewhere = [other for other, table in self.found if table == name]
            hint = f" (there is one in {', '.join(elsewhere)})" if elsewhere else ""
            self.problems.append(f'there is no table "{name}" in schema "{schema}"{hint}')
            return AuthTable(schema, name, {})
        columns = {
            meaning: AuthColumn(present, types[present], self.names.time_zone)
            for meaning, known in meanings.items()
            if (present := next((name for name in known if name in types), None))
            and types[present] in REQUIRED_TYPES.get(meaning, {types[present]})
            and not (meaning in DISPENSABLE_COLUMNS and (name, present) in self.unreadable)
        }
        lacking = [
            " or ".join(known)
            for meaning, known in meanings.items()
            if meaning in needed and meaning not in columns
        ]
        if lacking:
            self.problems.append(
                f'table "{schema}"."{name}" has no column {", ".join(lacking)}'
                f" (it has {', '.join(types)})"
            )
        return AuthTable(schema, name, columns)


def postgres_zone(time_zone: str) -> str:
    """A time zone by a name that Postgres has for it. Offsets are ahead of UTC if they are
    positive, as people and ISO 8601 write them; in POSIX, which Postgres follows, behind it."""
    found = _OFFSET.fullmatch(time_zone)
    if found is None:
        return time_zone
    sign, hours, minutes = found[1] or "+", found[2], found[3] or "00"
    opposite = "-" if sign == "+" else "+"
    return f"<{sign}{hours}{minutes}>{opposite}{hours}:{minutes}"


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _is_integer(text: str, bits: int) -> bool:
    if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text):
        return False
    return -(1 << bits - 1) <= int(text) < 1 << bits - 1
