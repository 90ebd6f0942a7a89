"""Triggers on Better Auth's tables, which notify relay of logouts at once.

The tables belong to another program, so an operator asks for the triggers, with
`relay db migrate --watch-sessions`. The embedded Postgres always has them.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg
from attrs import define
from psycopg import sql

from relay.errors import ConfigError, StoreForbids, StoreLacks
from relay.postgres.database import Connection, Database
from relay.postgres.tables.sessions.better_auth import AuthTable, AuthTables

OLD_ROWS: LiteralString = "referencing old table as old_rows"
TRIGGER_EVENTS: dict[str, LiteralString] = {
    "update": f"{OLD_ROWS} new table as new_rows",
    "delete": OLD_ROWS,
    "truncate": "",
}
"""The events on sessions and users that may concern a live connection, and their tables of rows."""

CREATE_TRIGGER = sql.SQL(
    "create trigger {trigger} after {event} on {table} {rows}"
    " for each statement execute function relay.notify_of_changes({kind}, {column})"
)
COUNT_INSTALLED = """
    select count(*) from pg_catalog.pg_trigger t
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_proc p on p.oid = t.tgfoid
    join pg_catalog.pg_namespace f on f.oid = p.pronamespace
    where n.nspname = %s and c.relname = %s and t.tgname = any(%s)
    and f.nspname = 'relay' and p.proname = 'notify_of_changes' and t.tgenabled in ('O', 'A')
"""
NOTE_DELETED = sql.Identifier("relay_note_deleted")
HAS_NOTE_DELETED = """
    select exists (select from pg_catalog.pg_trigger t
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_proc p on p.oid = t.tgfoid
    join pg_catalog.pg_namespace f on f.oid = p.pronamespace
    where n.nspname = %s and c.relname = %s
    and f.nspname = 'relay' and p.proname = 'note_deleted_users' and t.tgenabled in ('O', 'A'))
"""


@define(eq=False, repr=False)
class SessionTriggers:
    """The triggers on the tables of users and sessions."""

    _database: Database
    _tables: AuthTables

    async def install(self) -> bool:
        """Create the missing triggers; whether any was missing. `ConfigError` when that fails."""
        try:
            return await self._database.transact_unhurried(self._install)
        except (StoreForbids, StoreLacks) as error:  # they belong to another role, or are views
            raise ConfigError(f"relay cannot watch Better Auth's tables: {error}") from None
        except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            # It may be a view.
            raise ConfigError(
                f"relay cannot watch Better Auth's tables: {error.diag.message_primary}"
            ) from None

    async def installed(self) -> bool:
        return await self._database.transact(self._installed)

    async def note_deletions(self) -> bool:
        """Whether deleted users are noted, so that it is known whose streams nobody owns."""
        return await self._database.transact(self._note_deletions)

    def _install(self, connection: Connection) -> bool:
        watched, noted = self._installed(connection), self._note_deletions(connection)
        if not watched:
            self._install_watch(connection)
        if not noted:
            user = self._tables.user
            connection.execute(
                sql.SQL(
                    "drop trigger if exists {trigger} on {table};"
                    " create trigger {trigger} after delete on {table}"
                    " referencing old table as old_rows for each statement"
                    " execute function relay.note_deleted_users({column})"
                ).format(
                    trigger=NOTE_DELETED,
                    table=user.identifier,
                    column=sql.Literal(user["id"].name),
                )
            )
        return not (watched and noted)

    def _install_watch(self, connection: Connection) -> None:
        for kind, table in self._watched():
            for event, rows in TRIGGER_EVENTS.items():
                trigger = sql.Identifier(_name(event))
                connection.execute(
                    sql.SQL("drop trigger if exists {} on {}").format(trigger, table.identifier)
                )
                connection.execute(
                    CREATE_TRIGGER.format(
                        trigger=trigger,
                        event=sql.SQL(event),
                        table=table.identifier,
                        rows=sql.SQL(rows),
                        kind=sql.Literal(kind),
                        column=sql.Literal(table["id"].name),
                    )
                )

    def _note_deletions(self, connection: Connection) -> bool:
        user = self._tables.user
        ((noted,),) = connection.execute(HAS_NOTE_DELETED, [user.schema, user.name]).fetchall()
        return bool(noted)

    def _installed(self, connection: Connection) -> bool:
        names = [_name(event) for event in TRIGGER_EVENTS]
        return all(
            connection.execute(COUNT_INSTALLED, [table.schema, table.name, names]).fetchall()
            == [(len(TRIGGER_EVENTS),)]
            for _, table in self._watched()
        )

    def _watched(self) -> tuple[tuple[str, AuthTable], ...]:
        return ("session", self._tables.session), ("user", self._tables.user)


def _name(event: str) -> str:
    return f"relay_watch_{event}"
