"""relay's own tables: what they lack, and bringing them up to date. Floor 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.commands.options import STORE, configuration, settings_options
from relay.commands.running import with_database
from relay.errors import ConfigError
from relay.settings import Settings

if TYPE_CHECKING:
    from relay.postgres.database import Database
    from relay.postgres.triggers import SessionTriggers

OUT_OF_DATE = 1
"""The exit code when there is something to do."""


@click.group()
def db() -> None:
    """Look after relay's own tables, in the schema `relay`."""


@db.command(name="migrate")
@click.option(
    "--watch-sessions", is_flag=True,
    help="Put triggers on Better Auth's tables, too, so that relay hears of logouts at once.",
)  # fmt: skip
@settings_options(*STORE)
def db_migrate(watch_sessions: bool) -> None:
    """Bring relay's tables to the form that this version needs.

    relay's own PostgreSQL does this by itself when it starts.

    \b
    Example:
      RELAY_DATABASE_URL=postgresql://owner@db/app relay db migrate --watch-sessions
    """
    from relay.postgres.migrate import migrate

    settings = configuration().settings

    async def run(database: Database) -> list[str]:
        done = [f"applied {name}" for name in await migrate(database)]
        if watch_sessions and await (await _triggers(database, settings)).install():
            done.append("watching sessions: the triggers are on Better Auth's tables")
        return done

    for line in with_database(run) or ["nothing to do"]:
        click.echo(line)


async def _triggers(database: Database, settings: Settings) -> SessionTriggers:
    from relay.postgres.sessions import find_better_auth
    from relay.postgres.triggers import SessionTriggers

    sessions = await find_better_auth(
        database,
        schema=settings.auth_schema,
        user_table=settings.auth_user_table,
        session_table=settings.auth_session_table,
    )
    return SessionTriggers(database, sessions.tables)


@db.command(name="status")
@settings_options(*STORE)
def db_status() -> int:
    """Say whether `relay db migrate` has something to do; the exit code is 1 then.

    Also says how relay hears of logouts, which is a matter of choice.

    \b
    Example:
      relay db status --database-url postgresql://relay@db/app
    """
    from relay.postgres.migrate import pending

    settings = configuration().settings

    async def look(database: Database) -> list[str]:
        if missing := await pending(database):
            return [f"missing {name}" for name in missing]
        try:
            told = await (await _triggers(database, settings)).installed()
        except ConfigError as error:
            return ["up to date", f"sessions: {error}"]
        every = f"{settings.session_poll:g} s"
        return [
            "up to date",
            "sessions: triggers tell of logouts at once"
            if told
            else f"sessions: read every {every}; with `relay db migrate --watch-sessions`"
            " triggers tell of logouts",
        ]

    lines = with_database(look)
    for line in lines:
        click.echo(line)
    return OUT_OF_DATE if lines[0] != "up to date" else 0
