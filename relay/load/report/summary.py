"""The summary of a run, printed at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay.load.measures.builtin_checks import CLIENTS_ADMITTED
from relay.load.measures.checks import CheckResult
from relay.load.measures.reconciliation.ledger import LedgerLine
from relay.load.measures.results import GroupResult, Outcome, RunResult, TargetResult
from relay.load.measures.stats import endings_of
from relay.load.report.compare import print_judgement
from relay.load.report.words.generator import (
    GENERATOR_COLUMNS,
    about_generator,
    about_machine,
    doubt,
    generator_rows,
)
from relay.load.report.words.layers import layers_in_words
from relay.load.report.words.missed import missed_lines
from relay.load.report.words.stages import Cells, stage_tables
from relay.load.units import MIB, seconds_in_words

Row = tuple[str, tuple[str, ...]]
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
TARGET_COLUMNS = (
    "clients",
    "frames\nout",
    "frames\nin",
    "skipped",
    "age\np50",
    "age\np99",
    "to other\nnodes",
    "from\nthem",
    "lost\non the way",
    "CPU",
    "memory",
)
NO_GROUPS = frozenset({"generator", "ledger"})
"""What has counts like a group, and is none of the scenario's."""
MIN_REPORTED_GAP = 2.0
"""Seconds without a frame from which on the summary mentions a gap."""
INTEGRITY_FAULTS = (
    *("torn", "doubled", "disordered", "foreign", "mislabeled", "undecodable"),
    "misnumbered",
)

OUTCOMES: Mapping[Outcome, str] = {
    "kept": "all checks passed",
    "failed": "a check failed",
    "could not run": "the run did not finish",
    "interrupted": "interrupted: these are the figures so far",
}


def print_summary(console: Console, result: RunResult) -> None:
    """Print the result of a run; of one that never began, why."""
    if result.failure and not result.checks:
        for event in result.events:
            console.print(event)
        console.print(Text(f"{result.scenario}: could not run: {result.failure}"))
        return
    console.print(f"{result.scenario}: {result.about}")
    if result.groups.keys() - NO_GROUPS:
        console.print(_groups(result))
    if result.targets:
        console.print(_targets(result.targets))
    if result.generators:
        rows = [(row[0], row[1:-1]) for row in generator_rows(result.generators)]
        columns = [column.replace(" ", "\n", 1) for column in GENERATOR_COLUMNS[:-1]]
        console.print(_filled(columns, rows))
    for heading, cells in stage_tables(result):
        console.print(_stages(heading, cells))
    for line in _lines(result):
        console.print(line)
    if result.comparison is not None:
        console.print(f"compared with {result.comparison.baseline}:")
        print_judgement(console, result.comparison)
    console.print(OUTCOMES[result.outcome])


def _lines(result: RunResult) -> Iterator[Text | str]:
    for name, group in result.groups.items():
        yield from _bad_content(name, group.counts)
        yield from _layers(name, group)
        yield from _endings(name, group.counts)
        if (gap := group.times.get("gap", {}).get("max", 0.0)) >= MIN_REPORTED_GAP:
            yield f"{name}: no frame came for up to {seconds_in_words(gap)}"
    yield from map(Text, missed_lines(result))
    if result.generator is not None:
        yield about_generator(result.generator)
    if (words := about_machine(result)) is not None:
        yield words
    if (words := doubt(result)) is not None:
        yield f"MARK {words}"
    yield from result.events
    yield from _errors(result.groups)
    for each in result.ledger:
        yield (
            f"{_mark('BAD ', each.agrees)} {_about(each)}: relay {each.relay},"
            f" clients {each.clients}"
        )
    for check in _telling(result.checks):
        yield f"{_mark('FAIL', check.kept)} {check.line}   ({check.measured})"
    if result.aborted_by:
        yield f"ended early: {result.aborted_by}"
    if result.failure:
        yield f"could not run: {result.failure}"


def _telling(checks: Sequence[CheckResult]) -> Sequence[CheckResult]:
    """The checks that say something: where nobody was let in, that alone."""
    refused = [each for each in checks if each.line == CLIENTS_ADMITTED and not each.kept]
    return refused or checks


def _mark(word: str, good: bool) -> str:  # noqa: FBT001 (a mark of it)
    return "ok  " if good else word


def _about(line: LedgerLine) -> str:
    return f"ledger of {line.target}: {line.what}" if line.target else f"ledger: {line.what}"


def _groups(result: RunResult) -> Table:
    rows: list[Row] = []
    for name, group in result.groups.items():
        if name in NO_GROUPS:
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
    return _filled(SUMMARY_COLUMNS, rows)


def _targets(targets: Mapping[str, TargetResult]) -> Table:
    """What each node did, and how those saw it that were connected to it."""
    rows: list[Row] = []
    for name, target in targets.items():
        counts, age = target.clients.counts, target.clients.times.get("frame_age", {})
        counted = target.counted or {}
        cells = (
            _number(counts.get("auth.done")),
            _number(counts.get("sent")),
            _number(counts.get("received")),
            _number(counts.get("skipped")),
            seconds_in_words(age["p50"]) if age else "",
            seconds_in_words(age["p99"]) if age else "",
            *(_number(counted.get(f"hop.{each}")) for each in ("written", "received", "lost")),
            "" if target.cpu is None else f"{target.cpu:.1f} s",
            "" if target.memory is None else f"{target.memory / MIB:.0f} MiB",
        )
        rows.append((name, cells))
    return _filled(TARGET_COLUMNS, rows)


def _stages(columns: Sequence[str], rows: Sequence[Cells]) -> Table:
    """What was seen in each stage, whose name is given once."""
    named = [
        (name if number == 0 or rows[number - 1][0] != name else "", cells)
        for number, (name, *cells) in enumerate(rows)
    ]
    return _filled(columns[1:], [(name, tuple(cells)) for name, cells in named], columns[0])


def _filled(columns: Sequence[str], rows: Sequence[Row], first: str = "") -> Table:
    """A table without its empty columns, because terminals may be narrow."""
    filled = [number for number in range(len(columns)) if any(cells[number] for _, cells in rows)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first)
    for number in filled:
        table.add_column(columns[number], justify="right")
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


def _endings(name: str, counts: Mapping[str, int]) -> Iterator[Text]:
    if endings := endings_of(counts):
        words = ", ".join(f"{number} x {ending}" for ending, number in endings.items())
        yield Text(f"{name}: {counts.get('attacks', 0)} attacks; the relay's answers: {words}")


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
