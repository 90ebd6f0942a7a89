"""relay's own tables: numbered SQL files, applied in order, each once. Floor 1.

The files are `migrations/NNNN_name.sql`; what was applied stands in `relay.migrations`.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import LiteralString

import psycopg

from relay.errors import ConfigError, StoreForbids
from relay.postgres.database import Connection, Database

# See `alerts.py`. Two processes that migrate at once do it one after the other.
MIGRATIONS_LOCK = "select pg_advisory_xact_lock(1919249505, 2)"
HAS_MIGRATIONS = "select to_regclass('relay.migrations') is not null"


async def migrate(database: Database) -> list[str]:
    """Apply what is missing, all or nothing; return the names of what was applied.

    `ConfigError` when a newer relay made the tables, or the role may not make them.
    """

    def apply(connection: Connection) -> list[str]:
        connection.execute(MIGRATIONS_LOCK)
        _make_schema(connection)
        missing = _missing(connection)
        for migration in missing:
            connection.execute(migration.read_bytes())
            connection.execute(
                "insert into relay.migrations (name) values (%s)", [_name(migration)]
            )
        return [_name(migration) for migration in missing]

    try:
        return await database.transact_unhurried(apply)
    except StoreForbids as error:
        raise ConfigError(f"the database role may not make relay's tables: {error}") from None


async def pending(database: Database) -> list[str]:
    """The names of what `migrate` would apply. Changes nothing.

    `ConfigError` when a newer relay made the tables, or somebody else; `StoreForbids`.
    """

    def look(connection: Connection) -> list[str]:
        return [_name(migration) for migration in _missing(connection)]

    try:
        return await database.transact(look)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"relay's tables cannot be read: {error.diag.message_primary}") from None


def _make_schema(connection: Connection) -> None:
    # `if not exists` would ask for the right to create even where there is nothing to create.
    if not _holds(connection, "select to_regnamespace('relay') is not null"):
        connection.execute("create schema relay")
    if not _holds(connection, HAS_MIGRATIONS):
        connection.execute(
            "create table relay.migrations"
            " (name text primary key, applied_at timestamptz not null default now())"
        )


def _holds(connection: Connection, question: LiteralString) -> bool:
    return bool(connection.execute(question).fetchall()[0][0])


def _missing(connection: Connection) -> list[Traversable]:
    applied = set()
    if _holds(connection, HAS_MIGRATIONS):
        applied = {name for (name,) in connection.execute("select name from relay.migrations")}
    files = sorted(
        (
            file
            for file in (resources.files("relay.postgres") / "migrations").iterdir()
            if file.name.endswith(".sql")
        ),
        key=_name,
    )
    unknown = applied - {_name(file) for file in files}
    if unknown:
        raise ConfigError(
            f"the database was made by a newer relay: it has {', '.join(sorted(unknown))},"
            " which this one does not know; update relay"
        )
    return [file for file in files if _name(file) not in applied]


def _name(file: Traversable) -> str:
    return file.name.removesuffix(".sql")
