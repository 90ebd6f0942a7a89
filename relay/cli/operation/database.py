"""`relay db`: migrate relay's tables, and say whether they are up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.cli.grouped_help import GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, settings_options
from relay.cli.running import with_database
from relay.errors import ConfigError
from relay.settings.settings import Settings

if TYPE_CHECKING:
    from relay.postgres.database import Database
    from relay.postgres.triggers import SessionTriggers

EXIT_OUT_OF_DATE = 1


@click.group(cls=GroupedGroup)
def db() -> None:
    """Manage relay's tables, in the schema `relay`.

    \b
    Before an upgrade:    relay db status
    Create or upgrade:    relay db migrate --watch-sessions
    """


@db.command(name="migrate")
@click.option(
    "--watch-sessions", is_flag=True,
    help="Add triggers to the Better Auth tables, so that relay learns of logouts at once.",
)  # fmt: skip
@settings_options(*STORE_SETTINGS)
def db_migrate(watch_sessions: bool) -> None:
    """Create or upgrade relay's tables for this version.

    Not needed with relay's own PostgreSQL, which relay migrates when it starts.

    \b
    Example:
      RELAY_DATABASE_URL=postgresql://owner@db/app relay db migrate --watch-sessions
    """
    from relay.postgres.migrate import migrate

    settings = configuration().settings

    async def run(database: Database) -> list[str]:
        done = [f"applied {name}" for name in await migrate(database)]
        if watch_sessions and await (await _triggers(database, settings)).install():
            done.append("added triggers to the Better Auth tables")
        return done

    for line in with_database(run) or ["nothing to do"]:
        click.echo(line)


async def _triggers(database: Database, settings: Settings) -> SessionTriggers:
    from relay.postgres.store import find_configured_better_auth
    from relay.postgres.triggers import SessionTriggers

    sessions = await find_configured_better_auth(database, settings)
    return SessionTriggers(database, sessions.tables)


@db.command(name="status")
@settings_options(*STORE_SETTINGS)
def db_status() -> int:
    """Show whether relay's tables are up to date.

    Also shows how relay learns of logouts. The exit code is 1 if a migration is missing.

    \b
    Example:
      relay db status --database-url postgresql://relay@db/app
    """
    from relay.postgres.migrate import pending

    settings = configuration().settings

    async def look(database: Database) -> list[str]:
        if missing := await pending(database):
            return [f"missing {name}" for name in missing]
        if settings.auth_session_url is not None:
            return [
                "up to date",
                f"sessions: the application is asked every {settings.auth_session_recheck:g} s",
            ]
        try:
            told = await (await _triggers(database, settings)).installed()
        except ConfigError as error:
            return ["up to date", f"sessions: {error}"]
        every = f"{settings.session_poll:g} s"
        return [
            "up to date",
            "sessions: triggers report logouts at once"
            if told
            else f"sessions: checked every {every};"
            " `relay db migrate --watch-sessions` adds triggers that report logouts at once",
        ]

    lines = with_database(look)
    for line in lines:
        click.echo(line)
    return EXIT_OUT_OF_DATE if lines[0] != "up to date" else 0
