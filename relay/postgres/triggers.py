"""Triggers on Better Auth's tables, by which relay hears of logouts at once. Floor 1.

They belong to the tables of somebody else, so an operator asks for them, with
`relay db migrate --watch-sessions`. On relay's own Postgres they are always there.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg
from attrs import define
from psycopg import sql

from relay.errors import ConfigError, StoreForbids
from relay.postgres.auth_tables import AuthTables, Table
from relay.postgres.database import Connection, Database

OLD: LiteralString = "referencing old table as old_rows"
EVENTS: dict[str, LiteralString] = {
    "update": f"{OLD} new table as new_rows",
    "delete": OLD,
    "truncate": "",
}
"""What Better Auth does to a session or a user that somebody may be connected with."""

CREATE = sql.SQL(
    "create trigger {trigger} after {event} on {table} {rows}"
    " for each statement execute function relay.notify_of_changes({kind}, {column})"
)
INSTALLED = """
    select count(*) from pg_catalog.pg_trigger t
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_proc p on p.oid = t.tgfoid
    join pg_catalog.pg_namespace f on f.oid = p.pronamespace
    where n.nspname = %s and c.relname = %s and t.tgname = any(%s)
    and f.nspname = 'relay' and p.proname = 'notify_of_changes' and t.tgenabled in ('O', 'A')
"""


@define(eq=False)
class SessionTriggers:
    """The triggers on the tables of users and sessions."""

    _database: Database
    _tables: AuthTables

    async def install(self) -> bool:
        """Make those that are missing; whether any was. `ConfigError` when that is not possible."""
        try:
            return await self._database.transact_unhurried(self._install)
        except StoreForbids as error:  # they are somebody else's
            raise ConfigError(f"relay cannot watch Better Auth's tables: {error}") from None
        except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            # It may be a view.
            raise ConfigError(
                f"relay cannot watch Better Auth's tables: {error.diag.message_primary}"
            ) from None

    async def installed(self) -> bool:
        return await self._database.transact(self._installed)

    def _install(self, connection: Connection) -> bool:
        if self._installed(connection):
            return False
        for kind, table in self._watched():
            for event, rows in EVENTS.items():
                trigger = sql.Identifier(_name(event))
                connection.execute(
                    sql.SQL("drop trigger if exists {} on {}").format(trigger, table.identifier)
                )
                connection.execute(
                    CREATE.format(
                        trigger=trigger,
                        event=sql.SQL(event),
                        table=table.identifier,
                        rows=sql.SQL(rows),
                        kind=sql.Literal(kind),
                        column=sql.Literal(table["id"].name),
                    )
                )
        return True

    def _installed(self, connection: Connection) -> bool:
        names = [_name(event) for event in EVENTS]
        return all(
            connection.execute(INSTALLED, [table.schema, table.name, names]).fetchall()
            == [(len(EVENTS),)]
            for _, table in self._watched()
        )

    def _watched(self) -> tuple[tuple[str, Table], ...]:
        return ("session", self._tables.session), ("user", self._tables.user)


def _name(event: str) -> str:
    return f"relay_watch_{event}"
