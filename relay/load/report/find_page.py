"""The HTML report of a search for a limit: one file with SVG plots, as that of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from html import escape

from relay.load.measures.analysis.limits import FindResult, LevelRun
from relay.load.report.html import STYLE, html_table
from relay.load.report.plots import LoadPoint, plot_by_load
from relay.load.report.words.find import RUN_COLUMNS, find_lines, find_rows
from relay.load.scenario.raising import Raise


def find_page(result: FindResult, raised: Raise, runs: Sequence[LevelRun]) -> str:
    """Make the whole page."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(result.started))
    first, *rest = list(find_lines(result, raised, runs)) or ["nothing was found"]
    kind = "kept" if result.limit is not None else "failed"
    parts = [
        f"<h1>{escape(result.scenario)}: the limit of {escape(raised.what)}</h1>",
        f'<p class="{kind}">{escape(first)}</p>',
        *_paragraphs(rest),
        f"<p>{escape(when)}, {escape(result.machine)}; {escape(result.raised)}</p>",
        *_load_plots(result, raised, runs),
        "<h2>Runs</h2>",
        html_table(
            (escape(raised.what), *RUN_COLUMNS[1:]),
            [tuple(map(escape, row)) for row in find_rows(runs)],
        ),
    ]
    title = escape(f"{result.scenario}: the limit of {raised.what}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """One for each line that is not indented, with the indented ones that follow it."""
    paragraphs: list[list[str]] = []
    for line in lines:
        if line.startswith(" ") and paragraphs:
            paragraphs[-1].append(line.strip())
        else:
            paragraphs.append([line.strip()])
    for each in paragraphs:
        yield f"<p>{'<br>'.join(map(escape, each))}</p>"


def _waited(run: LevelRun) -> float | None:
    return None if run.cpu_share is None else run.cpu_share.waited


def _load_plots(result: FindResult, raised: Raise, runs: Sequence[LevelRun]) -> Iterator[str]:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1000

    def percent(part: float | None) -> float | None:
        return None if part is None else part * 100

    plots: list[tuple[str, str, Callable[[LevelRun], float | None]]] = [
        ("Frame age (p99)", "ms", lambda run: ms(run.time("frame_age", "p99"))),
        ("The relay's busiest process", "% of a core", lambda run: percent(run.cpu)),
        ("How long it waited for a core", "% of the time", lambda run: percent(_waited(run))),
        ("How busy the generator was", "% of the time", lambda run: percent(run.busy)),
        ("Traffic to all clients", "Mbit/s", lambda run: run.traffic * 8 / 1e6),
        ("Verifying a token", "ms", lambda run: ms(run.result.verification)),
    ]
    for title, unit, figure in plots:
        points = [
            LoadPoint(run.level, value, is_good=run.kept)
            for run in runs
            if (value := figure(run)) is not None
        ]
        if points:
            drawn = plot_by_load(points, unit, raised.what, result.limit)
            yield f"<h2>{escape(title)}</h2><figure>{drawn}</figure>"
