"""Compares the results of two runs."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from relay.load.measures.results import Comparison, RunResult
from relay.load.report.words.comparison import CHANGE_COLUMNS, change_rows, notes
from relay.load.units import seconds_in_words

SHOWN_STATISTICS = ("p50", "p99", "max")
SHOWN_COUNTS = (
    "sent",
    "received",
    "missed",
    "lost",
    "closes",
    "auth.failed",
    "alerts.received",
    "alerts.lost",
)
MIN_MARKED_CHANGE = 0.1
"""Smallest relative change that is marked."""


def print_comparison(
    console: Console, comparison: Comparison, before: RunResult, after: RunResult
) -> None:
    """Print what is judged, and all other figures; their changes of a tenth or more are marked."""
    print_judgement(console, comparison)
    console.print("All figures, without a judgement:")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for column in ("before", "after", "change", ""):
        table.add_column(column, justify="right")
    for row in rows(before, after):
        table.add_row(*row)
    console.print(table)
    for line in changed_checks(before, after):
        console.print(line)


def print_judgement(console: Console, comparison: Comparison) -> None:
    """Print what is judged, and the outcome."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)  # p50 and p99 differ at the end
    for column in CHANGE_COLUMNS:
        table.add_column(column, justify="right")
    for row in change_rows(comparison):
        table.add_row(*row)
    if comparison.changes:
        console.print(table)
    for line in notes(comparison):
        console.print(line)


def rows(before: RunResult, after: RunResult) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of name, before, after, change and mark."""
    for name in [*before.groups, *(each for each in after.groups if each not in before.groups)]:
        old, new = before.groups.get(name), after.groups.get(name)
        if old is None or new is None:
            yield (name, *(("there", "gone") if old else ("not there", "there")), "", "*")
            continue
        for count in SHOWN_COUNTS:
            a, b = old.counts.get(count, 0), new.counts.get(count, 0)
            if a or b:
                yield (f"{name} {count}", str(a), str(b), *_change(a, b))
        for rate in [each for each in old.rates if each in new.rates]:
            e, f = old.rates[rate], new.rates[rate]
            if e or f:
                yield (f"{name} {rate}", f"{e:.3g}", f"{f:.3g}", *_change(e, f))
        for time in [each for each in old.times if each in new.times]:
            for statistic in SHOWN_STATISTICS:
                c, d = old.times[time][statistic], new.times[time][statistic]
                words = seconds_in_words(c), seconds_in_words(d)
                yield (f"{name} {time} {statistic}", *words, *_change(c, d))


def changed_checks(before: RunResult, after: RunResult) -> Iterator[str]:
    """A line for each check that only one of the runs kept."""
    old = {check.line: check.kept for check in before.checks}
    for check in after.checks:
        if check.line in old and old[check.line] != check.kept:
            yield f"{check.line}: {'now passes' if check.kept else 'now fails'}"


def _change(before: float, after: float) -> tuple[str, str]:
    if not before:
        return ("", "*" if after else "")
    change = after / before - 1
    return (f"{change:+.1%}", "*" if abs(change) >= MIN_MARKED_CHANGE else "")
