"""`relay load run`: reads a scenario, runs it, shows it, and writes the results."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, cast

import attrs
import trio
from attrs import frozen
from rich.console import Console

from relay.concurrency.exception_groups import leaves
from relay.errors import ConfigError
from relay.load.actors.network.group_networks import check_links
from relay.load.measures.analysis.comparison import (
    IncomparableRuns,
    RecordedRun,
    check_baseline,
    check_same_load,
    compare_runs,
)
from relay.load.measures.analysis.noise import MIN_COMPARED_SECONDS
from relay.load.measures.results import BadResult, Outcome, RunResult, Second, read_result
from relay.load.report.github import Annotations
from relay.load.report.live_view import LiveView
from relay.load.report.metrics.sinks import SinkAddresses, open_metric_feed
from relay.load.report.outputs import (
    BestEffortOutput,
    CsvFile,
    JsonLines,
    OutputFiles,
    cannot_write,
    write_whole,
)
from relay.load.report.summary import print_summary
from relay.load.run.agents.agents import AgentOptions
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.scenario.parsing import load_scenario, with_targets
from relay.load.scenario.scenario import BACKGROUND_NEEDS, Scenario
from relay.load.scenario.schema import ScenarioError
from relay.logs.setup import configure_logging

NON_TTY_WIDTH = 120
EXIT_CODES: dict[Outcome, int] = {
    "kept": 0,
    "failed": 1,
    "could not run": 3,
    "interrupted": 130,
}
BAD_SCENARIO, CANNOT_WRITE, WORSE = 2, 3, 4
COULD_NOT_RUN = EXIT_CODES["could not run"]


@frozen
class Baseline:
    """A run before, and how much of a change from it does not matter."""

    file: Path
    tolerance: float

    def open(self, scenario: Scenario) -> RecordedRun:
        """Read it; `RelayError` if a run of the scenario cannot be judged against it."""
        run = read_run(self.file)
        check_baseline(run)
        check_same_load(run, scenario.name, scenario.load)
        if scenario.length < MIN_COMPARED_SECONDS:
            raise IncomparableRuns(
                f"{scenario.name} takes {scenario.length:g} s; comparing needs"
                f" {MIN_COMPARED_SECONDS} s"
            )
        return run


def read_run(path: Path) -> RecordedRun:
    """Read a file of `--json`; `BadResult`."""
    return RecordedRun(str(path), *read_result(path))


@frozen(kw_only=True)
class ScenarioChoice:
    """A scenario, and what the command line says about running it."""

    path: Path
    workers: int | None = None
    targets: Sequence[str] = ()
    """In place of its own."""
    target_is_mine: bool = False
    abort_on_fail: bool = False
    agents: AgentOptions | None = None
    """In place of workers of this machine."""
    check_database: Callable[[Scenario], None] = lambda _scenario: None
    """Raises `ConfigError` if relays that are to be started would have no PostgreSQL."""


def open_scenario(choice: ScenarioChoice) -> tuple[Scenario, RunOptions, str]:
    """Read a scenario, with its source; `ScenarioError`, `ConfigError`."""
    path = choice.path
    scenario = load_scenario(path)
    if choice.workers is not None:
        if choice.workers == 1 and scenario.background:
            raise ScenarioError("--workers", BACKGROUND_NEEDS)
        scenario = attrs.evolve(scenario, workers=choice.workers)
    if choice.targets:
        scenario = with_targets(scenario, choice.targets)
    if choice.agents is not None:
        check_reachable(scenario, str(path))
    check_links(scenario, str(path))
    choice.check_database(scenario)
    options = RunOptions(
        target_is_mine=choice.target_is_mine,
        abort_on_fail=choice.abort_on_fail,
        agents=choice.agents,
    )
    return scenario, options, path.read_text(encoding="utf-8")


def run_scenario(
    choice: ScenarioChoice,
    files: OutputFiles,
    *,
    on_github: bool = False,
    baseline: Baseline | None = None,
    sinks: SinkAddresses = SinkAddresses(),  # noqa: B008 (frozen)
) -> int:
    """Run a scenario; returns the exit code.

    `on_github` prints what is wrong as GitHub's annotations, too.
    """
    path = choice.path
    output = BestEffortOutput(sys.stdout)
    notes = Annotations(output.write if on_github else None, str(path))
    try:
        files.try_to_open()
    except OSError as error:
        notes.error(print_error(cannot_write(error.filename, error)))
        return CANNOT_WRITE
    configure_logging("error")
    try:
        scenario, options, source = open_scenario(choice)
        coordinator = Coordinator(scenario, options, source, str(path))
        before = None if baseline is None else (baseline.open(scenario), baseline.tolerance)
        with notes:
            result, failures = _run_and_write(coordinator, files, output, before, sinks)
    except (ScenarioError, BadResult, IncomparableRuns) as error:
        notes.error(print_error(str(error)))
        return BAD_SCENARIO
    except ConfigError as error:
        notes.error(print_error(str(error)))
        return COULD_NOT_RUN
    notes.result(result, source)
    for failure in failures:
        notes.error(print_error(failure))
    is_worse = result.comparison is not None and result.comparison.with_verdict("worse")
    return EXIT_CODES[result.outcome] or (CANNOT_WRITE if failures else WORSE if is_worse else 0)


def check_reachable(scenario: Scenario, file: str) -> None:
    """Refuse relays that only this machine can reach; `ScenarioError`."""
    if any(each.start for each in scenario.targets_by_name.values()):
        raise ScenarioError(
            f"{file}: target.start",
            "the relay of a run is for this machine only: with agents, use a url or --target URL",
        )


def _run_and_write(
    coordinator: Coordinator,
    files: OutputFiles,
    output: BestEffortOutput,
    before: tuple[RecordedRun, float] | None,
    sinks: SinkAddresses,
) -> tuple[RunResult, list[str]]:
    """Run it, and write all files; returns what could not be written as well."""
    console = Console(file=cast(IO[str], output), markup=False, highlight=False)
    if not output.isatty():
        console.width = NON_TTY_WIDTH
    state = coordinator.state
    with JsonLines(files.json) as lines, CsvFile(files.csv) as rows:
        state.on_second = in_turn(lines.second, rows.second)
        run_trio(partial(_run, coordinator, console, sinks))
        result = state.result()
        if before is not None and result.problem is None:
            baseline, tolerance = before
            after = RecordedRun("this run", result, state.seconds)
            comparison = compare_runs(baseline, after, tolerance)
            result = attrs.evolve(result, comparison=comparison)
        print_summary(console, result)
        lines.result(result)
    failures = [output.failure, lines.failure, rows.failure]
    if files.report is not None:
        from relay.load.report.html import page  # noqa: PLC0415 (only with --report)

        failures.append(write_whole(files.report, page(result, state.seconds)))
    if files.junit is not None:
        from relay.load.report.junit import junit_xml  # noqa: PLC0415 (only with --junit)

        failures.append(write_whole(files.junit, junit_xml(result)))
    return result, [each for each in failures if each is not None]


def run_trio(main: Callable[[], Awaitable[None]]) -> None:
    """`trio.run`; a `ScenarioError` comes alone, not in groups of the nurseries around it."""
    try:
        trio.run(main)
    except BaseExceptionGroup as errors:
        wrong = next((each for each in leaves(errors) if isinstance(each, ScenarioError)), None)
        if wrong is None:
            raise
        raise wrong from None


async def _run(coordinator: Coordinator, console: Console, addresses: SinkAddresses) -> None:
    state = coordinator.state
    run = (("run", state.run_id), ("scenario", state.scenario.name))

    def note(words: str) -> None:
        state.note(state.now, words)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(LiveView(console, state).show)
        async with open_metric_feed(addresses, run, note) as feed:
            state.on_second = in_turn(state.on_second, feed.take)
            await coordinator.run()
        nursery.cancel_scope.cancel()


def in_turn(*takers: Callable[[Second], None]) -> Callable[[Second], None]:
    def take(second: Second) -> None:
        for each in takers:
            each(second)

    return take


def print_error(text: str) -> str:
    """Print an error as one line on stderr; returns it."""
    line = " ".join(text.split())
    sys.stderr.write(f"relay: {line}\n")
    return line
