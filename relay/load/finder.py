"""`relay load find`: runs a scenario with more and less load, until the limit is known."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import IO, cast

import trio
from attrs import define, field, frozen
from rich.console import Console

from relay.errors import ConfigError
from relay.load.measures.analysis.limit_search import LimitSearch, SearchOptions
from relay.load.measures.analysis.limits import (
    MANY_UNVERIFIED,
    Cause,
    FindResult,
    LevelRun,
    Spread,
    find_cause,
)
from relay.load.measures.builtin_checks import CLIENTS_ADMITTED
from relay.load.measures.results import RunResult
from relay.load.report.github import Annotations
from relay.load.report.live_view import LiveView
from relay.load.report.outputs import (
    BestEffortOutput,
    FindLines,
    OutputFiles,
    cannot_write,
    write_whole,
)
from relay.load.report.words.find import print_find, run_line, verdict_words
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.run.machine import describe_machine
from relay.load.run.run_state import RunState
from relay.load.runner import (
    BAD_SCENARIO,
    CANNOT_WRITE,
    COULD_NOT_RUN,
    NON_TTY_WIDTH,
    ScenarioChoice,
    open_scenario,
    print_error,
    run_trio,
)
from relay.load.scenario.parsing import with_checks
from relay.load.scenario.raising import (
    Raise,
    level_of,
    parse_raise,
    raise_to,
    raised_scenario,
)
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schedule import Timeline
from relay.load.scenario.schema import Place, ScenarioError
from relay.logs.setup import configure_logging

NO_LIMIT, OF_GENERATOR, CANCELLED_BY_USER = 1, 5, 130
REST = 0.5
"""Seconds between two runs."""
FIRST_OVERHEAD = 5.0
"""Seconds that a run is thought to take beside the scenario, before one has been made."""
UNVERIFIED = "; the relay got no answer whose tokens they use: is its database there?"
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


def find_limit(
    choice: ScenarioChoice, options: FindOptions, files: OutputFiles, *, on_github: bool = False
) -> int:
    """Search, print what was found, and write the files; returns the exit code.

    `on_github` prints what is wrong as GitHub's annotations, too.
    """
    output = BestEffortOutput(sys.stdout)
    notes = Annotations(output.write if on_github else None, str(choice.path))
    try:
        files.try_to_open()
    except OSError as error:
        notes.error(print_error(cannot_write(error.filename, error)))
        return CANNOT_WRITE
    configure_logging("error")
    console = Console(file=cast(IO[str], output), markup=False, highlight=False)
    if not output.isatty():
        console.width = NON_TTY_WIDTH
    try:
        finder = open_finder(choice, options, console)
        with notes, FindLines(files.json) as lines:
            finder.on_run = lines.run
            run_trio(finder.run)
            result = finder.result()
            lines.found(result)
            print_find(console, result, finder.raised, finder.runs)
    except ScenarioError as error:
        notes.error(print_error(str(error)))
        return BAD_SCENARIO
    except ConfigError as error:
        notes.error(print_error(str(error)))
        return COULD_NOT_RUN
    failures = [output.failure, lines.failure]
    if files.report is not None:
        from relay.load.report.find_page import find_page  # noqa: PLC0415 (only with --report)

        failures.append(write_whole(files.report, find_page(result, finder.raised, finder.runs)))
    failures = [each for each in failures if each is not None]
    for failure in failures:
        notes.error(print_error(str(failure)))
    code = exit_code(result, options.at_least)
    if code not in {0, CANCELLED_BY_USER}:
        notes.error(verdict_words(result, finder.raised, options.at_least))
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
        wanted = tuple(dict.fromkeys(options.until))
        scenario = with_checks(scenario, wanted, [Place("--until")] * len(wanted))
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
    if options.at_least is not None and options.at_least > most:
        words = f"{options.at_least:g} is more than the {most:g} that are tried at most (--to)"
        raise ScenarioError("--at-least", words)
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
        aim=_aim(options.at_least, raised),
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


def _aim(at_least: float | None, raised: Raise) -> float | None:
    """The smallest load that is at least this."""
    if at_least is None or not raised.is_whole:
        return at_least
    return float(math.ceil(at_least))


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
    _raises: dict[float, Raise] = field(factory=dict)
    """How each load was made: counts of several groups are rounded, and the same is to be made
    again."""

    async def run(self) -> None:
        """Search to the end, or until the time is over or a signal comes. `ScenarioError`."""
        self._say_plan()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_at_signal, signals, nursery.cancel_scope)
                await self._search()
                nursery.cancel_scope.cancel()

    async def _end_at_signal(
        self, signals: AsyncIterator[int], searching: trio.CancelScope
    ) -> None:
        """End between two runs, or while one is summed up: a run itself takes signals first."""
        await anext(signals)
        self._interrupted = True
        searching.cancel()

    async def _search(self) -> None:
        begun = trio.current_time()
        while (level := self.search.next()) is not None:
            expected = self.scenario.length + self.scenario.grace + self._overhead
            if self.runs and trio.current_time() - begun + expected > self.max_seconds:
                self._stopped = f"the {self.max_seconds:g} s of --max-time are over"
                break
            await self._run_at(level)
            if self._failure is not None or self._interrupted:
                break
            await trio.sleep(REST)
        is_cut_short = self._interrupted or self._failure is not None or self._stopped is not None
        if not (is_cut_short or self.search.is_closed):
            self._stopped = f"it made all {self.search.options.steps} runs of --steps"

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
        raised = self._raises.get(level) or raise_to(self.raised, self.scenario, level)
        scenario = raised_scenario(self.scenario, raised)
        actual = level_of(scenario, raised)
        self._raises.setdefault(actual, raised)
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
        self._failure = self._why_void(state, result)
        if self._failure is not None:
            return
        self.runs.append(run)
        self.search.note(actual, kept=run.kept)
        self.on_run(run)
        self.console.print(run_line(len(self.runs), run, self.raised))

    def _why_void(self, state: RunState, result: RunResult) -> str | None:
        """Why a run says nothing about its load, so that others would not either; None if it
        does. A relay that ended under the load before is one such reason."""
        if result.failure is not None:
            is_about_load = state.has_begun and bool(self.runs)
            return None if is_about_load else result.failure
        for check in result.checks:
            if check.line == CLIENTS_ADMITTED and not check.kept:
                errors = sorted(result.total.errors, key=lambda each: -result.total.errors[each])
                words = f"no client was admitted: {', '.join(errors[:1]) or check.measured}"
                return words + (UNVERIFIED if result.unverified >= MANY_UNVERIFIED else "")
        return None

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
            advice=self._advice(),
            interrupted=self._interrupted,
            failure=self._failure,
        )

    def _at(self, level: float | None, *, kept: bool) -> list[LevelRun]:
        return [each for each in self.runs if each.level == level and each.kept is kept]

    def _cause(self) -> Cause | None:
        failed = self._at(self.search.above, kept=False)
        kept = self._at(self.search.limit, kept=True)
        return find_cause(failed[-1], kept[-1] if kept else None) if failed else None

    def _advice(self) -> str | None:
        """For checks that ask for much, and that less load can only break."""
        failed = self._at(self.search.above, kept=False)
        if self.search.limit is not None or not failed:
            return None
        broken = {check.line for check in failed[-1].result.checks if not check.kept}
        wanting = [
            check.line
            for check in self.scenario.checks
            if check.line in broken and check.unit == "count" and check.comparison in {">", ">="}
        ]
        if not wanting:
            return None
        return (
            f"{', '.join(wanting)}: less load has less of it. Begin with more (--from), or say what"
            " is to be kept with --until"
        )

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
