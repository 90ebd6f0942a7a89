"""Why no row of the session table may be that of any token: hidden rows, or sessions elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

from psycopg import sql

from relay.model.suspicion import Suspicion
from relay.postgres.database import Connection
from relay.postgres.tables.sessions.better_auth import AuthTable, AuthTables
from relay.settings.tokens import TokenStorage

NEWEST_ROWS = 20
"""Rows that are looked at."""
MAX_AGE = 7 * 86_400.0
"""Seconds without a new session, after which the table seems not to be in use: Better Auth's
sessions last so long by default."""
DAY = 86_400.0

_HEX_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")

END_MARKS = (
    "deletedat",
    "revokedat",
    "endedat",
    "loggedoutat",
    "isrevoked",
    "isdeleted",
    "revoked",
)
"""Names of columns, in lower case and without underscores."""
FIND_END_MARKS = """
    select a.attname from pg_catalog.pg_attribute a
    join pg_catalog.pg_class c on c.oid = a.attrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped
    and lower(replace(a.attname, '_', '')) = any(%s) order by a.attnum
"""

# Whether a table has policies that hide rows from this role; whether one shows some; and whether
# there is anything to hide: a table that never had rows has no pages.
FIND_POLICIES = """
    select row_security_active(c.oid)
            and not (coalesce(bool_or(p.shows_all), false) and bool_and(p.polpermissive)),
        coalesce(bool_or(p.polpermissive), false),
        c.relkind = 'p' or pg_relation_size(c.oid) > 0
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    left join lateral (
        select polpermissive,
            polpermissive and pg_get_expr(polqual, polrelid) = 'true' as shows_all
        from pg_catalog.pg_policy
        where polrelid = c.oid and polcmd in ('*', 'r')
        and exists (
            select from unnest(polroles) as granted (role)
            where role = 0 or pg_has_role(role, 'usage')
        )
    ) p on true
    where n.nspname = %s and c.relname = %s and c.relkind in ('r', 'p')
    group by c.oid, c.relkind
"""

# An application whose role is named `relay` makes its tables there, as `search_path` begins with
# the schema of the role's name.
FIND_IN_OWN_SCHEMA = """
    select from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'relay' and c.relname = %s and c.relkind in ('r', 'p')
"""


def find_hidden(connection: Connection, tables: AuthTables) -> Suspicion | None:
    """The table all of whose rows are hidden from this role by row level security, if one is."""
    for table in (tables.session, tables.user):
        row = connection.execute(FIND_POLICIES, [table.schema, table.name]).fetchone()
        if row is None:
            continue
        hides, shows, has_pages = row
        if not hides or not has_pages:
            continue
        visible = sql.SQL("select from {} limit 1").format(table.identifier)
        if not shows:
            why = "there is no policy for this role"
        elif connection.execute(visible).fetchone() is None:
            why = "its policies let this role see none"
        else:
            continue
        return Suspicion(
            f"row level security hides all rows of {table}: {why}",
            f"create a policy for select on {table} with `using (true)` for the role of"
            " database_url, or give that role BYPASSRLS",
            is_certain=True,
        )
    return None


def find_suspicions(
    connection: Connection, tables: AuthTables, storage: TokenStorage
) -> list[Suspicion]:
    """What makes it unlikely that the table has the sessions of anybody's tokens."""
    hidden = find_hidden(connection, tables)
    if hidden is not None:
        return [hidden]
    session = tables.session
    tokens, age = _newest(connection, session)
    found = [] if (other := _find_in_own_schema(connection, session)) is None else [other]
    if not tokens:
        users = sql.SQL("select from {} limit 1").format(tables.user.identifier)
        if connection.execute(users).fetchone() is not None:
            found.append(_elsewhere(f"{tables.user} has users, but {session} has no row"))
    elif age is not None and age > MAX_AGE:
        days = f"{age / DAY:.0f} days"
        found.append(_elsewhere(f"{session} has had no new row for {days}"))
    hashes = [token for token in tokens if _HEX_DIGEST.fullmatch(token)]
    if tokens and len(hashes) == len(tokens) and storage == "plain":
        found.append(
            Suspicion(
                f"the tokens of {session} have 64 hexadecimal digits, as if they were hashes",
                "if they are the SHA-256 of tokens, set auth_token_storage to sha256-hex",
            )
        )
    if tokens and not hashes and storage == "sha256-hex" and session["token"].type != "bytea":
        found.append(
            Suspicion(
                f"the tokens of {session} do not have the 64 hexadecimal digits of a SHA-256",
                "set auth_token_storage to what the application stores",
            )
        )
    return found


def find_end_marks(connection: Connection, session: AuthTable) -> Suspicion | None:
    """Columns by which an application may mark the rows of ended sessions instead of removing them;
    relay goes by `expiresAt` alone."""
    rows = connection.execute(FIND_END_MARKS, [session.schema, session.name, [*END_MARKS]])
    marks = ", ".join(name for (name,) in rows)
    if not marks:
        return None
    return Suspicion(
        f"{session} has {marks}: rows that are marked there are accepted until they expire",
        "let the application move expiresAt into the past, too; or set auth_session_table to a view"
        " of the rows that have not ended",
    )


def _find_in_own_schema(connection: Connection, session: AuthTable) -> Suspicion | None:
    in_own = connection.execute(FIND_IN_OWN_SCHEMA, [session.name]).fetchone() is not None
    if session.schema == "relay" or not in_own:
        return None
    return Suspicion(
        f'there is another table "{session.name}", in the schema "relay": an application whose'
        f" database role is named relay writes there, and relay reads {session}",
        "give the application a role of another name, or set its search_path to public; then move"
        " its tables to the schema public",
        is_certain=True,
    )


def _elsewhere(said: str) -> Suspicion:
    return Suspicion(
        said,
        "if Better Auth keeps its sessions elsewhere (secondaryStorage), set auth_session_url to"
        " the URL of its get-session",
    )


def _newest(connection: Connection, session: AuthTable) -> tuple[Sequence[str], float | None]:
    """The tokens of the newest rows, and the age of the newest in seconds."""
    created = session.columns.get("created")
    age, order = sql.Composed([sql.SQL("null::float8")]), sql.Composed([])
    if created is not None:
        at = created.as_instant("s")
        age = sql.SQL("extract(epoch from clock_timestamp() - {})::float8").format(at)
        order = sql.SQL("order by {} desc nulls last").format(created.of("s"))
    rows = connection.execute(
        sql.SQL("select {}, {} from {} s {} limit {}").format(
            session["token"].as_text("s"), age, session.identifier, order, NEWEST_ROWS
        )
    ).fetchall()
    return [token or "" for token, _ in rows], rows[0][1] if rows else None
