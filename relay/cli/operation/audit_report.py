"""Prints audit events as a table or as JSON lines.

Values in a row came from clients. They are printable already, and are never read as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click
from attrs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay.model.audit_event import AuditEvent

UNLIMITED_WIDTH = 400
"""Columns of the table if the output is not a terminal."""


def show(events: Sequence[AuditEvent], *, as_json: bool) -> None:
    """Print events on stdout."""
    if as_json:
        for event in events:
            click.echo(_json(event))
    elif events:
        console = Console(width=None if sys.stdout.isatty() else UNLIMITED_WIDTH)
        console.print(_table(events))
    else:
        click.echo("relay: no audit events found", err=True)


def _json(event: AuditEvent) -> str:
    values = asdict(event)
    return json.dumps({**values, "event_id": str(event.event_id), "at": event.at.isoformat()})


def _table(events: Sequence[AuditEvent]) -> Table:
    in_cluster = any(event.node is not None for event in events)
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["time", "what", "outcome", "who", "stream", "address", "connection", "reason"]
    if in_cluster:
        titles.insert(titles.index("connection"), "node")
    for title in titles:
        table.add_column(
            title, overflow="fold", justify="right" if title == "connection" else "left"
        )
    for event in events:
        cells = [
            event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            event.what,
            event.outcome,
            _who(event),
            event.stream_id or "",
            event.address,
            *([event.node or ""] if in_cluster else []),
            str(event.connection or ""),
            event.reason,
        ]
        table.add_row(*map(Text, cells))
    return table


def _who(event: AuditEvent) -> str:
    if event.service is not None:
        return f"service {event.service}"
    return event.user_id or ""
