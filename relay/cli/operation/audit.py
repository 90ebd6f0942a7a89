"""`relay audit`: read the audit events."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from relay.cli.grouped_help import GroupedCommand
from relay.cli.options import DATABASE_SETTINGS, duration, settings_options
from relay.cli.running import with_database

if TYPE_CHECKING:
    from relay.model.audit_event import AuditEvent
    from relay.postgres.database import Database

AUDITED = (
    *("auth", "register", "takeover", "alert", "video-frame", "close", "figures", "revocation"),
    *("grant", "streams", "transfer", "free", "end", "service-token", "link", "webhook", "target"),
    *("push", "audit"),
)
"""The kinds of events of this version; the table may have those of others."""


@click.command(cls=GroupedCommand)
@click.option("--user", "who", metavar="ID", help="Only events of this user or service.")
@click.option("--what", metavar="WHAT", help="Only events of this kind: auth, register, close, …")
@click.option("--since", metavar="TIME", callback=duration, help="Only the last 90s, 12h, 7d, …")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N",
    help="At most this many, the newest.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@settings_options(*DATABASE_SETTINGS)
def audit(
    who: str | None,
    what: str | None,
    since: timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show who did what and with what outcome, newest last.

    \b
    Example:
      relay audit --since 1h --what auth
      relay audit --user 7Kq2VxT1 --limit 1000 --json
    """
    from relay.cli.operation.audit_report import show
    from relay.postgres.store import check_tables
    from relay.postgres.tables.audit import AuditTable

    async def read(database: Database) -> list[AuditEvent]:
        await check_tables(database)
        table = AuditTable(database)
        return await table.read(who=who, what=what, since=since, limit=limit)

    events = with_database(read)
    if not events and what is not None and what not in AUDITED:
        known = ", ".join(AUDITED)
        raise click.BadParameter(
            f"no event is of the kind {what!r}. The kinds are {known}.", param_hint="--what"
        )
    show(events, as_json=as_json)
