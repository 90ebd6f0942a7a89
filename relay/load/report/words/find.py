"""What a search for a limit has found, in words and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from relay.load.measures.analysis.limits import Cause, FindResult, LevelRun, Resource
from relay.load.scenario.raising import Raise
from relay.load.units import seconds_in_words

RUN_COLUMNS = ("", "", "frames in", "age p50", "age p99", "Mbit/s", "relay CPU", "generator")
RESOURCES: dict[Resource, str] = {
    "generator": "the generator, not the relay",
    "machine": "the machine that runs the generator, not the relay",
    "relay": "the relay's CPU",
    "link": "the link",
    "database": "the database",
    "unknown": "not known",
}


def run_line(number: int, run: LevelRun, raised: Raise) -> str:
    """One run, as soon as it has ended."""
    words = f"run {number}: {raised.in_words(run.level)}: "
    if run.kept:
        return words + "kept" + _first_measured(run)
    return words + f"FAILED {'; '.join(run.failed_checks[:2])}"


def _first_measured(run: LevelRun) -> str:
    checks = run.result.checks
    return f" ({checks[0].line}: {checks[0].measured})" if checks else ""


def print_find(
    console: Console, result: FindResult, raised: Raise, runs: Sequence[LevelRun]
) -> None:
    """Print all runs, by load, and what was found."""
    if runs:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for column in (raised.what, *RUN_COLUMNS[1:]):
            heading = column.replace(" ", "\n", 1)  # fits into 80 columns
            table.add_column(heading, justify="left" if not column else "right")
        for row in find_rows(runs):
            table.add_row(*row)
        console.print(table)
    for line in find_lines(result, raised, runs):
        console.print(line)


def find_rows(runs: Sequence[LevelRun]) -> Iterator[tuple[str, ...]]:
    """A row for each run, the smallest load first, with the cells of `RUN_COLUMNS`."""
    for run in sorted(runs, key=lambda run: run.level):
        ages = (run.time("frame_age", name) for name in ("p50", "p99"))
        yield (
            f"{run.level:g}",
            "kept" if run.kept else "FAILED",
            str(run.result.total.counts.get("received", 0)),
            *("" if age is None else seconds_in_words(age) for age in ages),
            f"{run.traffic * 8 / 1e6:.3g}",
            *("" if part is None else f"{part:.0%}" for part in (run.cpu, run.busy)),
        )


def find_lines(result: FindResult, raised: Raise, runs: Sequence[LevelRun]) -> Iterator[str]:
    """What was found, line by line."""
    if not runs:
        yield _nothing_found(result)
        return
    yield from _limit(result, raised)
    yield from _unsteady(raised, runs)
    yield from _why_failed(result, runs)
    if result.cause is not None:
        yield from cause_lines(result.cause)
    if result.advice is not None:
        yield result.advice
    if result.stopped is not None:
        yield f"the search ended early: {result.stopped}"
    if result.failure is not None:
        yield f"the search ended early: run {len(runs) + 1} says nothing: {result.failure}"
    if result.interrupted:
        yield "interrupted: this is what is known so far"


def _nothing_found(result: FindResult) -> str:
    if result.failure is not None:
        return f"could not run: {result.failure}"
    return "interrupted before the first run had ended"


def verdict_words(result: FindResult, raised: Raise, at_least: float | None) -> str:
    """Why a search fails a job of CI, in one line."""
    if result.failure is not None:
        return f"could not run: {result.failure}"
    words = next(_limit(result, raised))
    if result.cause is not None:
        words += f"; what gave way first: {RESOURCES[result.cause.resource]}"
    return words if at_least is None else f"{words} (--at-least {at_least:g})"


def _limit(result: FindResult, raised: Raise) -> Iterator[str]:
    if result.limit is None:
        assert result.above is not None  # each run kept its checks or did not
        least = raised.in_words(result.above)
        if result.is_complete:
            yield f"no limit: not even {least} kept the checks"
        else:
            yield f"no limit so far: {least} did not keep the checks, and less was not tried"
        return
    kept = raised.in_words(result.limit)
    if result.above is None:
        most = "the most that was tried (--to)" if result.is_complete else "and more was not tried"
        yield f"limit: at least {kept}, {most}"
    elif result.cause is not None and result.cause.is_generator:
        yield f"limit: at least {kept}; the generator cannot make as much as {result.above:g}"
    else:
        yield f"limit: {kept}; {result.above:g} is too much"
    if (spread := result.spread) is not None:
        times = "once" if spread.runs == 1 else f"in {spread.runs} of {spread.runs} runs"
        yield f"  kept {times}, {spread.check}: {', '.join(spread.measured)}"


def _unsteady(raised: Raise, runs: Sequence[LevelRun]) -> Iterator[str]:
    """Loads that kept the checks in some of their runs only."""
    for level in sorted({run.level for run in runs}):
        ends = [run.kept for run in runs if run.level == level]
        if 0 < sum(ends) < len(ends):
            yield f"  {raised.in_words(level)}: kept in {sum(ends)} of {len(ends)} runs only"


def _why_failed(result: FindResult, runs: Sequence[LevelRun]) -> Iterator[str]:
    failed = [run for run in runs if run.level == result.above and not run.kept]
    if failed:
        yield f"  {result.above:g} failed {'; '.join(failed[-1].failed_checks[:3])}"


def cause_lines(cause: Cause) -> Iterator[str]:
    """What gave way first, and what says so."""
    yield f"what gave way first: {RESOURCES[cause.resource]}"
    yield f"  {cause.evidence}"
    for words in cause.others:
        yield f"  {words}"
