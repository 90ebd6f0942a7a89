"""Creates relay's own tables: numbered SQL files, applied in order, each once.

The files are `migrations/NNNN_name.sql`; the table `relay.migrations` lists the applied ones.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import LiteralString

import psycopg

from relay.errors import ConfigError, StoreForbids, StoreLacks
from relay.postgres.database import Connection, Database

# Two processes migrate one after the other. The first number spells "rela", as that of
# `relay.lock_alerts` does.
MIGRATIONS_LOCK = "select pg_advisory_xact_lock(1919249505, 2)"
HAS_MIGRATIONS = "select to_regclass('relay.migrations') is not null"


async def migrate(database: Database) -> list[str]:
    """Apply the missing migrations, all or none; return their names.

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
        raise ConfigError(f"the database role may not create relay's tables: {error}") from None


async def pending(database: Database) -> list[str]:
    """The names of the migrations that `migrate` would apply. Changes nothing.

    `ConfigError` when a newer relay made the tables, or another program; `StoreForbids`.
    """

    def look(connection: Connection) -> list[str]:
        return [_name(migration) for migration in _missing(connection)]

    try:
        return await database.transact(look)
    except StoreLacks as error:
        raise ConfigError(f"relay's tables cannot be read: {error}") from None
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"relay's tables cannot be read: {error.diag.message_primary}") from None


def _make_schema(connection: Connection) -> None:
    # `if not exists` would need the right to create even where nothing is to be created.
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
