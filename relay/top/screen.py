"""Renders a relay for a terminal of any size.

Names are untrusted: they reach the terminal through `printable` only, and never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from rich.console import Console, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from relay.logs.printable import printable
from relay.top.snapshots import SnapshotDelta, StreamLine, ViewerLine

Value = TypeVar("Value")

MAX_NAMES = 24
"""The endings, limits or services in one line."""
MAX_NAME_LENGTH = 64
MAX_NODE_WORDS = 160
"""Characters of what is said about one node."""
MIN_ROWS = 3
HINT = "q or Ctrl-C quits"
STREAM_COLUMNS = {
    "status": 64,
    "fps": 0,
    "viewers": 40,
    "dropped/s": 52,
    "out/s": 72,
    "waiting": 80,
    "node": 96,
}
"""The columns beside a stream's name, with the least width of the terminal that shows them."""
VIEWER_COLUMNS = {
    "bandwidth": 32,
    "round trip": 48,
    "under way": 64,
    "waiting": 80,
    "layer": 90,
}
"""The same beside a viewer's number and stream."""
MAX_VIEWERS = 20
"""Those in a snapshot for which there is no screen to fill: the slowest links."""


def screen(
    url: str,
    delta: SnapshotDelta | None,
    trouble: str | None,
    console: Console,
    *,
    live: bool = True,
) -> Group:
    """The whole screen; `trouble` says why the snapshot is not newer."""
    parts: list[ConsoleRenderable] = [_head(url, delta, trouble)]
    if delta is not None:
        parts.append(_facts(delta))
        streams, viewers = delta.streams(), delta.viewers()
        room, viewers_room = len(streams), MAX_VIEWERS
        if live:
            taken = sum(len(console.render_lines(part)) for part in parts)
            room = max(MIN_ROWS, console.height - taken - 3)
            viewers_room = max(room // 2, room - max(1, len(streams))) - 1
            if viewers and viewers_room >= MIN_ROWS:
                viewers_room = min(viewers_room, len(viewers))
                room -= viewers_room + 1
            else:
                viewers = []
        parts += _streams(streams, room, console.width, in_cluster=delta.in_cluster)
        parts += _viewers(viewers, viewers_room, console.width)
    if live:
        parts.append(Text(HINT, style="dim"))
    return Group(*parts)


def _head(url: str, delta: SnapshotDelta | None, trouble: str | None) -> Text:
    head = Text(f"relay at {printable(url)}", style="bold")
    if trouble is not None:
        head.append(f"   {printable(trouble)}; retrying", style="bold red")
    if delta is None:
        return head if trouble else head.append("   asking", style="dim")
    ready = delta.now.ready
    state, style = ("ready", "green") if ready.ready else ("not ready", "bold red")
    if ready.draining:
        state, style = "draining", "bold yellow"
    if trouble is None:
        head.append(f"   {state}", style=style)
    if delta.now.stats.profile != "default":
        head.append(f"   profile {printable(delta.now.stats.profile)}", style="bold yellow")
    return head


def _facts(delta: SnapshotDelta) -> Table:
    stats = delta.now.stats
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row(
        "connections",
        f"{stats.connections} open, {stats.authenticated} authenticated,"
        f" {stats.unauthenticated} unauthenticated, {_rate(delta.arrivals)} new",
    )
    streams = stats.streams
    table.add_row(
        "streams",
        f"{streams.online + streams.streaming} live, {streams.streaming} of them streaming,"
        f" {streams.consumers} subscriptions",
    )
    waiting = stats.frames_to_consumers.waiting
    table.add_row(
        "frames",
        f"{_rate(delta.frames_in)} in, {_rate(delta.frames_out)} out, {waiting} waiting",
    )
    drops = delta.drops()
    table.add_row(
        "dropped", Text(", ".join(f"{_name(why)} {_rate(rate)}" for why, rate in _few(drops)))
    )
    table.add_row("ages", _ages(delta))
    table.add_row(
        "alerts",
        f"{stats.alerts_stored} stored, {_rate(delta.alerts)}, {stats.alerts_delivered} delivered",
    )
    table.add_row("endings", _counts(stats.endings))
    table.add_row("limits hit", _counts(stats.limits_hit))
    table.add_row("services", _services(delta))
    if nodes := delta.nodes():
        words = [printable(each, MAX_NODE_WORDS) for each in nodes[:MAX_NAMES]]
        table.add_row("nodes", Text(", ".join(words)))
    return table


def _ages(delta: SnapshotDelta) -> str:
    ages = delta.ages()
    if ages is None:
        return "no frame was written"
    half, most = ages
    return f"half below {_seconds(half)}, 99% below {_seconds(most)}"


def _counts(counts: Mapping[str, int]) -> Text:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{_name(name)} {count}" for name, count in _few(dict(most)) if count]
    return Text(", ".join(words) or "none")


def _services(delta: SnapshotDelta) -> Text:
    ready = delta.now.ready
    text = Text()
    for name, state in _few({"database": ready.database, **ready.services}):
        if text:
            text.append(", ")
        text.append(f"{_name(name)} ")
        healthy = state in {"ok", "running"}
        text.append(printable(state, MAX_NAME_LENGTH), style="green" if healthy else "bold red")
    return text


def _streams(
    lines: list[StreamLine], room: int, width: int, *, in_cluster: bool
) -> Iterable[ConsoleRenderable]:
    if not lines:
        return [Text("no streams", style="dim")]
    columns = [name for name, least in STREAM_COLUMNS.items() if width >= least]
    if not in_cluster and "node" in columns:
        columns.remove("node")
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("stream", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in columns:
        is_text = name in {"status", "node"}
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    shown = lines if len(lines) <= room else lines[: room - 1]
    for line in shown:
        style = "" if line.status == "streaming" else "dim"
        values = _values(line)
        cells = (printable(line.stream_id), *(values[name] for name in columns))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    left = len(lines) - len(shown)
    return [table, *([Text(f"and {left} more", style="dim")] if left else [])]


def _viewers(lines: list[ViewerLine], room: int, width: int) -> Iterable[ConsoleRenderable]:
    if not lines:
        return []
    columns = [name for name, least in VIEWER_COLUMNS.items() if width >= least]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("viewer", no_wrap=True)
    table.add_column("stream", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    shown = lines if len(lines) <= room else lines[: room - 1]
    for line in shown:
        style = "dim" if line.link.calm else ""
        stream = printable(line.stream_id) if line.streams == 1 else f"{line.streams} streams"
        values = _link_values(line)
        cells = (printable(line.name), stream, *(values[name] for name in columns))
        table.add_row(*(Text(cell, style=style) for cell in cells))
    left = len(lines) - len(shown)
    return [table, *([Text(f"and {left} more viewers", style="dim")] if left else [])]


def _link_values(line: ViewerLine) -> dict[str, str]:
    """The cells of a viewer, by column."""
    link = line.link
    round_trip, under_way = link.round_trip_seconds, link.bytes_under_way
    return {
        "bandwidth": "enough" if link.calm else _bandwidth(link.bytes_per_second),
        "round trip": "-" if round_trip is None else _seconds(round_trip),
        "under way": "-" if under_way is None else f"{_number(under_way / 1024)} KiB",
        "layer": "-" if line.layer is None else printable(line.layer),
        "waiting": str(line.waiting),
    }


def _bandwidth(bytes_per_second: int | None) -> str:
    if bytes_per_second is None:
        return "-"
    kilobits = bytes_per_second * 8 / 1000
    if kilobits < 999.5:
        return f"{_number(kilobits)} kbit/s"
    return f"{_number(kilobits / 1000)} Mbit/s"


def _values(line: StreamLine) -> dict[str, str]:
    """The cells of a stream, by column."""
    return {
        "status": printable(line.status, MAX_NAME_LENGTH),
        "fps": _number(line.fps),
        "viewers": str(line.viewers),
        "dropped/s": _number(line.dropped),
        "out/s": _number(line.written),
        "waiting": str(line.waiting),
        "node": printable(line.place or "-", MAX_NAME_LENGTH),
    }


def _few(values: Mapping[str, Value]) -> list[tuple[str, Value]]:
    return list(values.items())[:MAX_NAMES]


def _name(name: str) -> str:
    return printable(name.replace("_", " "), MAX_NAME_LENGTH)


def _rate(rate: float | None) -> str:
    return f"{_number(rate)}/s"


def _number(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.0f}" if rate >= 99.5 or rate == int(rate) else f"{rate:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"
