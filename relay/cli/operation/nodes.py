"""`relay nodes`: the relays that serve clients together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.grouped_help import GroupedCommand
from relay.cli.operation.top import read_token, relay_url
from relay.cli.options import DATABASE_SETTINGS, settings_options
from relay.cli.running import with_database
from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.model.cluster import SeenNode
    from relay.postgres.database import Database
    from relay.protocol.reports import FiguresReport

NO_NODES = (
    "no relay of this database serves together with others: start each one with"
    " --cluster-bind HOST:PORT, or several processes of one machine with --workers N"
)
NODE_HEADINGS = ("node", "machine", "address", "version", "seen", "state", "streams")


@click.command(cls=GroupedCommand)
@click.option(
    "--ask", "url", metavar="URL",
    help="Also ask this relay which nodes answer it, and which links fail.",
)  # fmt: skip
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="With --ask, read the token from this file instead of RELAY_TOKEN.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@settings_options(*DATABASE_SETTINGS)
def nodes(url: str | None, token_file: Path | None, as_json: bool) -> None:
    """List the relays that serve clients together.

    They are listed as the database knows them. Each relay with --cluster-bind is a node, and so is
    each worker of --workers. A node gives a sign of life every 2 s, and is `silent` after 15 s
    without one. `streams` are those that are produced there.

    The database cannot say who reaches whom. With --ask URL, the relay there asks all others over
    their links and says which of them answered, and which links could not be opened. That needs
    the token of a service with --operate, in RELAY_TOKEN or in a file.

    \b
    Example:
      relay nodes
      RELAY_TOKEN=$(relay token service desk --operate) relay nodes --ask http://localhost:3000
    """
    from relay.postgres.store import check_tables
    from relay.postgres.tables.nodes import NodeTable

    access = None if url is None else (relay_url(url), read_token(token_file))

    async def read(database: Database) -> list[SeenNode]:
        await check_tables(database)
        return await NodeTable(database).seen()

    found = with_database(read)
    if not found:
        raise ConfigError(NO_NODES)
    figures = None if access is None else _ask(*access)
    rows = [_row(each, figures) for each in found]
    if as_json:
        click.echo(json.dumps({"nodes": rows}))
    else:
        for line in (*_table(rows), *_failures(rows)):
            click.echo(line)


def _ask(url: str, token: str) -> FiguresReport:
    import trio

    from relay.top.run import read_figures

    return trio.run(read_figures, url, token)


def _row(seen: SeenNode, figures: FiguresReport | None) -> dict[str, Any]:
    node = seen.node
    row: dict[str, Any] = {
        "node": node.node_id,
        "machine": node.machine,
        "address": node.address,
        "version": node.version,
        "seenSecondsAgo": round(seen.seconds_ago, 1),
        "state": seen.state,
        "streams": seen.streams,
    }
    if figures is not None:
        said = next((each for each in figures.nodes if each.node == node.node_id), None)
        row["answers"] = said is not None
        row["reaches"] = [] if said is None else list(said.reaches)
        row["cannotReach"] = (
            {} if said is None else {each.node: each.why for each in said.cannot_reach}
        )
    return row


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    asked = "answers" in rows[0]
    cells = [[*NODE_HEADINGS, *(["answers"] if asked else [])], *([*_cells(each)] for each in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _cells(row: dict[str, Any]) -> Iterator[str]:
    from relay.logs.printable import printable

    yield from (printable(row[name]) for name in ("node", "machine"))
    yield printable(row["address"] or "-")
    yield printable(row["version"])
    yield f"{row['seenSecondsAgo']:.0f} s ago"
    yield row["state"]
    yield str(row["streams"])
    if "answers" in row:
        yield "yes" if row["answers"] else "no"


def _failures(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    from relay.logs.printable import printable

    for row in rows:
        for other, why in row.get("cannotReach", {}).items():
            yield printable(f"{row['node']} cannot reach {other}: {why}")
