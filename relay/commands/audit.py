"""The audit events, read back. Floor 6."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from relay.commands.options import DATABASE, duration, settings_options
from relay.commands.running import with_database

if TYPE_CHECKING:
    from relay.postgres.audit import AuditEvent
    from relay.postgres.database import Database


@click.command()
@click.option("--user", "who", metavar="ID", help="Only of this user, or of the service so named.")
@click.option("--what", metavar="WHAT", help="Only of this kind: auth, register, close, …")
@click.option("--since", metavar="TIME", callback=duration, help="Only the last 90s, 12h, 7d, …")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N",
    help="The newest N.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@settings_options(*DATABASE)
def audit(
    who: str | None,
    what: str | None,
    since: timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show who did what, and what became of it; the newest at the end.

    \b
    Example:
      relay audit --since 1h --what auth
      relay audit --user 7Kq2VxT1 --limit 1000 --json
    """
    from relay import app
    from relay.audit_report import show
    from relay.postgres.audit import AuditTable

    async def read(database: Database) -> list[AuditEvent]:
        await app.check_tables(database)
        table = AuditTable(database)
        return await table.read(who=who, what=what, since=since, limit=limit)

    show(with_database(read), as_json=as_json)
