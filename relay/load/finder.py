"""`relay load find`: runs a scenario with more and less load, until the limit is known."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, cast

import trio
from attrs import define, field, frozen
from rich.console import Console

from relay.errors import ConfigError
from relay.load.measures.limit_search import LimitSearch, SearchOptions
from relay.load.measures.limits import Cause, FindResult, LevelRun, Spread, find_cause
from relay.load.report.find_words import print_find, run_line
from relay.load.report.live_view import LiveView
from relay.load.report.outputs import (
    BestEffortOutput,
    FindLines,
    OutputFiles,
    cannot_write,
    write_whole,
)
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.run.machine import describe_machine
from relay.load.runner import (
    BAD_SCENARIO,
    CANNOT_WRITE,
    COULD_NOT_RUN,
    NON_TTY_WIDTH,
    ScenarioChoice,
    open_scenario,
    print_error,
)
from relay.load.scenario.raising import (
    Raise,
    level_of,
    parse_raise,
    raise_to,
    raised_scenario,
)
from relay.load.scenario.scenario import Scenario, with_checks
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import Place, ScenarioError
from relay.logs.setup import configure_logging

NO_LIMIT, OF_GENERATOR, CANCELLED_BY_USER = 1, 5, 130
REST = 0.5
"""Seconds between two runs."""
FIRST_OVERHEAD = 5.0
"""Seconds that a run is thought to take beside the scenario, before one has been made."""
DEFAULT_RANGE = 64
"""How many times as much as the scenario has a search tries at most, unless it is told."""


@frozen(kw_only=True)
class FindOptions:
    """What the command line asks for."""

    raised: str
    until: Sequence[str] = ()
    start: float | None = None
    most: float | None = None
    steps: int = 12
    resolution: float = 0.1
    repeats: int = 3
    max_seconds: float = 600.0
    at_least: float | None = None
    """The limit that a search must find not to fail."""


def find_limit(choice: ScenarioChoice, options: FindOptions, files: OutputFiles) -> int:
    """Search, print what was found, and write the files; returns the exit code."""
    output = BestEffortOutput(sys.stdout)
    try:
        files.try_to_open()
    except OSError as error:
        print_error(cannot_write(error.filename, error))
        return CANNOT_WRITE
    configure_logging("error")
    console = Console(file=cast(IO[str], output), markup=False, highlight=False)
    if not output.isatty():
        console.width = NON_TTY_WIDTH
    try:
        finder = open_finder(choice, options, console)
        with FindLines(files.json) as lines:
            finder.on_run = lines.run
            trio.run(finder.run)
            result = finder.result()
            lines.found(result)
    except ScenarioError as error:
        print_error(str(error))
        return BAD_SCENARIO
    except ConfigError as error:
        print_error(str(error))
        return COULD_NOT_RUN
    print_find(console, result, finder.raised, finder.runs)
    failures = [output.failure, lines.failure]
    if files.report is not None:
        from relay.load.report.find_page import find_page  # noqa: PLC0415 (only with --report)

        failures.append(write_whole(files.report, find_page(result, finder.raised, finder.runs)))
    failures = [each for each in failures if each is not None]
    for failure in failures:
        print_error(str(failure))
    code = exit_code(result, options.at_least)
    return code or (CANNOT_WRITE if failures else 0)


def exit_code(result: FindResult, at_least: float | None) -> int:
    """What a search means to CI."""
    if result.interrupted:
        return CANCELLED_BY_USER
    if result.failure is not None:
        return COULD_NOT_RUN
    if result.limit is None:
        return NO_LIMIT
    if at_least is not None:
        if result.limit >= at_least:
            return 0
        return OF_GENERATOR if result.cause and result.cause.is_generator else NO_LIMIT
    return OF_GENERATOR if result.cause is not None and result.cause.is_generator else 0


def open_finder(choice: ScenarioChoice, options: FindOptions, console: Console) -> Finder:
    """Read the scenario and what is to be done with it; `ScenarioError`."""
    scenario, run_options, source = open_scenario(choice)
    if options.until:
        scenario = with_checks(scenario, options.until, [Place("--until")] * len(options.until))
    if not scenario.checks:
        raise ScenarioError(str(choice.path), "it has no check: say what must be kept with --until")
    raised = parse_raise(options.raised, scenario)
    own = level_of(scenario, raised)
    start = own if options.start is None else options.start
    most = own * DEFAULT_RANGE if options.most is None else options.most
    most = min(most, raised.most)
    least = 1.0 if raised.is_whole else 0.1
    if not least <= start <= most:
        words = f"{start:g} is not between {least:g} and {most:g} (--to)"
        raise ScenarioError("--from", words)
    if scenario.length + scenario.grace > options.max_seconds:
        words = f"a run of {scenario.name} takes {scenario.length:g} s, longer than that"
        raise ScenarioError("--max-time", words)
    search = SearchOptions(
        start=start,
        least=least,
        most=most,
        resolution=options.resolution,
        steps=options.steps,
        repeats=options.repeats,
        is_whole=raised.is_whole,
    )
    return Finder(
        scenario=scenario,
        source=source,
        file=str(choice.path),
        run_options=run_options,
        raised=raised,
        search=LimitSearch(search),
        max_seconds=options.max_seconds,
        console=console,
    )


@define(eq=False, kw_only=True)
class Finder:
    """One search."""

    scenario: Scenario
    source: str
    file: str
    run_options: RunOptions
    raised: Raise
    search: LimitSearch
    max_seconds: float
    console: Console
    on_run: Callable[[LevelRun], object] = lambda _run: None
    runs: list[LevelRun] = field(factory=list)
    """In the order in which they were made."""
    _started: float = field(factory=time.time)
    _stopped: str | None = None
    _interrupted: bool = False
    _failure: str | None = None
    _overhead: float = FIRST_OVERHEAD

    async def run(self) -> None:
        """Search to the end, or until the time is over or a run is interrupted. `ScenarioError`."""
        self._say_plan()
        begun = trio.current_time()
        while (level := self.search.next()) is not None:
            expected = self.scenario.length + self.scenario.grace + self._overhead
            if self.runs and trio.current_time() - begun + expected > self.max_seconds:
                self._stopped = f"the {self.max_seconds:g} s of --max-time are over"
                break
            await self._run_at(level)
            if self._failure is None and not self._interrupted:
                await self._rest()
            if self._failure is not None or self._interrupted:
                break
        is_cut_short = self._interrupted or self._failure is not None or self._stopped is not None
        if not (is_cut_short or self.search.is_closed):
            self._stopped = f"it made all {self.search.options.steps} runs of --steps"

    async def _rest(self) -> None:
        """Wait a moment, in which Ctrl-C ends the search as it does during a run."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            with trio.move_on_after(REST):
                await anext(signals)
                self._interrupted = True

    def _say_plan(self) -> None:
        options = self.search.options
        length = self.scenario.length + self.scenario.grace + FIRST_OVERHEAD
        runs = options.steps + options.repeats - 1
        likely = min(runs * length, self.max_seconds)
        self.console.print(
            f"{self.scenario.name}: from {self.raised.in_words(options.start)} to at most"
            f" {options.most:g}, in up to {runs} runs of {self.scenario.length:g} s:"
            f" about {math.ceil(likely / 60)} min, and {self.max_seconds / 60:.3g} min at most"
        )

    async def _run_at(self, level: float) -> None:
        raised = raise_to(self.raised, self.scenario, level)
        scenario = raised_scenario(self.scenario, raised)
        actual = level_of(scenario, raised)
        coordinator = Coordinator(scenario, self.run_options, self.source, self.file, raised)
        state, begun = coordinator.state, trio.current_time()
        async with trio.open_nursery() as nursery:
            if self.console.is_terminal:
                nursery.start_soon(LiveView(self.console, state).show)
            await coordinator.run()
            nursery.cancel_scope.cancel()
        self._overhead = max(0.0, trio.current_time() - begun - scenario.length - scenario.grace)
        result = state.result()
        self._interrupted = result.outcome == "interrupted"
        if self._interrupted:
            return
        run = LevelRun(
            level=actual,
            kept=result.outcome == "kept",
            result=result,
            seconds=state.seconds,
            capacity=_capacity(scenario),
            thin_phones=_thin_phones(scenario),
        )
        if result.failure is not None and not self.runs:
            self._failure = result.failure
            return
        self.runs.append(run)
        self.search.note(actual, kept=run.kept)
        self.on_run(run)
        self.console.print(run_line(len(self.runs), run, self.raised))

    def result(self) -> FindResult:
        """What is known when it has ended."""
        search = self.search
        return FindResult(
            scenario=self.scenario.name,
            raised=f"{self.raised.what} of {', '.join(self.raised.groups)}",
            started=self._started,
            machine=self.runs[-1].result.machine if self.runs else describe_machine(),
            limit=search.limit,
            above=search.above,
            stopped=self._stopped,
            spread=self._spread(),
            cause=self._cause(),
            interrupted=self._interrupted,
            failure=self._failure,
        )

    def _at(self, level: float | None, *, kept: bool) -> list[LevelRun]:
        return [each for each in self.runs if each.level == level and each.kept is kept]

    def _cause(self) -> Cause | None:
        failed = self._at(self.search.above, kept=False)
        kept = self._at(self.search.limit, kept=True)
        return find_cause(failed[-1], kept[-1] if kept else None) if failed else None

    def _spread(self) -> Spread | None:
        """What the first check measured at the limit, in all its runs."""
        runs = self._at(self.search.limit, kept=True)
        if not runs:
            return None
        check = self.scenario.checks[0]
        found = [each for run in runs for each in run.result.checks if each.line == check.line]
        return Spread(check=check.line, runs=len(runs), measured=[each.measured for each in found])


def _capacity(scenario: Scenario) -> dict[str, float]:
    """Bytes per second that the simulated links of each group of viewers carry."""
    timeline, found = Timeline(scenario), {}
    for name in scenario.viewers:
        rates = [network.bandwidth for network in timeline.networks(name)]
        known = [rate for rate in rates if rate is not None]
        if len(known) == len(rates) and not timeline.links(name):
            found[name] = max(known) / 8 * timeline.most(name)
    return found


def _thin_phones(scenario: Scenario) -> list[str]:
    """The groups of phones with a simulated uplink."""
    timeline = Timeline(scenario)
    return [
        name
        for name in scenario.phones
        if timeline.links(name) or any(net.upload is not None for net in timeline.networks(name))
    ]
