"""The summary of a run, printed at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay.load.measures.results import GroupResult, RunResult
from relay.load.report.layer_words import layers_in_words
from relay.load.units import seconds_in_words

MAX_SUMMARY_ERRORS = 12
SUMMARY_COLUMNS = (
    "frames\nout",
    "frames\nin",
    "missed",
    "lost",
    "age\np50",
    "age\np99",
    "alerts\nin/out",
    "closes",
)
MIN_REPORTED_GAP = 2.0
"""Seconds without a frame from which on the summary mentions a gap."""
INTEGRITY_FAULTS = ("torn", "doubled", "disordered", "foreign", "mislabeled", "undecodable")


def print_summary(console: Console, result: RunResult) -> None:
    """Print the result of a run."""
    console.print(f"{result.scenario}: {result.about}")
    if result.groups:
        console.print(_groups(result))
    for name, group in result.groups.items():
        for line in (*_bad_content(name, group.counts), *_layers(name, group)):
            console.print(line)
        if (gap := group.times.get("gap", {}).get("max", 0.0)) >= MIN_REPORTED_GAP:
            console.print(f"{name}: no frame came for up to {seconds_in_words(gap)}")
    for line in _errors(result.groups):
        console.print(line)
    for comparison in result.ledger:
        mark = "ok  " if comparison.agrees else "BAD "
        console.print(
            f"{mark} ledger: {comparison.what}: relay {comparison.relay},"
            f" clients {comparison.clients}"
        )
    for check in result.checks:
        mark = "ok  " if check.kept else "FAIL"
        console.print(f"{mark} {check.line}   ({check.measured})")
    if result.aborted_by:
        console.print(f"ended early: {result.aborted_by}")
    if result.failure:
        console.print(f"could not run: {result.failure}")
    words = {
        "kept": "all checks passed",
        "failed": "a check failed",
        "could not run": "the run did not finish",
        "interrupted": "interrupted: these are the figures so far",
    }
    console.print(words[result.outcome])


def _groups(result: RunResult) -> Table:
    rows = []
    for name, group in result.groups.items():
        if name in {"generator", "ledger"}:
            continue
        counts, age = group.counts, group.times.get("frame_age", {})
        received, accepted = counts.get("alerts.received", 0), counts.get("alerts.accepted", 0)
        cells = (
            _number(counts.get("sent")),
            _number(counts.get("received")),
            _part(counts),
            _number(counts.get("lost")),
            seconds_in_words(age["p50"]) if age else "",
            seconds_in_words(age["p99"]) if age else "",
            "/".join(filter(None, (_number(received), _number(accepted)))),
            _number(counts.get("closes")),
        )
        rows.append((name, cells))
    # Empty columns are left out, because terminals may be narrow.
    filled = [
        number for number in range(len(SUMMARY_COLUMNS)) if any(cells[number] for _, cells in rows)
    ]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for number in filled:
        table.add_column(SUMMARY_COLUMNS[number], justify="right")
    for name, cells in rows:
        table.add_row(name, *(cells[number] for number in filled))
    return table


def _bad_content(name: str, counts: Mapping[str, int]) -> Iterator[Text]:
    bad = [f"{counts[kind]} {kind}" for kind in INTEGRITY_FAULTS if counts.get(kind)]
    if bad:
        yield Text(f"{name}: frames {', '.join(bad)}")


def _layers(name: str, group: GroupResult) -> Iterator[Text]:
    layers, rates = layers_in_words(group.counts), group.rates
    if layers and rates:
        yield Text(
            f"{name}: {rates['pictures_per_second']:.3g} pictures/s, {layers};"
            f" {rates['switches_per_minute']:.2g} switches/min"
        )


def _errors(groups: Mapping[str, GroupResult]) -> Iterator[Text]:
    errors = sorted(
        (
            (number, name, words)
            for name, group in groups.items()
            for words, number in group.errors.items()
        ),
        reverse=True,
    )
    for number, name, words in errors[:MAX_SUMMARY_ERRORS]:
        yield Text(f"{number:6d} x {name}: {words}")
    if len(errors) > MAX_SUMMARY_ERRORS:
        yield Text(f"and {len(errors) - MAX_SUMMARY_ERRORS} other kinds of errors")


def _part(counts: Mapping[str, int]) -> str:
    missed = counts.get("missed", 0)
    whole = missed + counts.get("received", 0) + counts.get("lost", 0)
    return f"{missed} ({missed / whole:.1%})" if missed else ""


def _number(number: int | None) -> str:
    return str(number) if number else ""
