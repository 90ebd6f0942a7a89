"""A run's state, as the coordinator fills it and the live view shows it. No I/O."""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from attrs import define, evolve, field

from relay.load.actors.engine import StatsUpdate
from relay.load.measures.builtin_checks import all_thresholds, builtin_results
from relay.load.measures.checks import CheckResult, evaluate_all
from relay.load.measures.generator_usage import (
    GeneratorResult,
    GeneratorSecond,
    GeneratorUsage,
    OneGenerator,
)
from relay.load.measures.process_usage import FULL_MACHINE, ProcessUsage
from relay.load.measures.reconciliation.ledger import (
    HopTotals,
    LedgerLine,
    TargetLedger,
    TargetTotals,
    compare_hops,
    compare_ledger,
    viewers_by_stream,
)
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.reconciliation.reconcile import reconcile
from relay.load.measures.results import (
    GENERATOR,
    Outcome,
    RunResult,
    Second,
    StageResult,
    TargetResult,
    UsedInStage,
    group_result,
    second_of,
)
from relay.load.measures.stats import GroupStats, RunStats, TimeDistribution
from relay.load.run.generator import Generator
from relay.load.run.machine import describe_machine
from relay.load.run.update_check import check_update
from relay.load.scenario.scenario import ONLY_TARGET, Scenario, links

MAX_RUN_OBSERVATIONS = 2_000_000
"""Observations that are kept of a run; each takes about 300 bytes."""


def stats_of(scenario: Scenario) -> RunStats:
    """The statistics of a run, still empty, with those of its stages."""
    stages = {each.name: RunStats(links(scenario, each.name)) for each in scenario.stages}
    return RunStats(links(scenario), stages=stages)


@define(eq=False)
class RunState:
    """What is known of a run so far."""

    scenario: Scenario
    phase: str = "starting"
    run_id: str = field(factory=lambda: secrets.token_hex(4))
    started: float = field(factory=time.time)
    """Seconds since the Unix epoch."""
    now: float = 0.0
    """Seconds since the start of the run."""
    run_stats: RunStats = field(init=False)
    observations: Observations = field(factory=Observations)
    _kept: int = 0
    """How many observations there are."""
    seconds: list[Second] = field(factory=list)
    on_second: Callable[[Second], None] = lambda _second: None
    ledger: list[LedgerLine] = field(factory=list)
    events: list[str] = field(factory=list)
    """What was done to targets, and when."""
    used_in_stages: Mapping[str, UsedInStage] = field(factory=dict)
    """By name, of those that have ended."""
    target_totals: dict[str, TargetTotals] = field(factory=dict)
    """What each target counted during the run, as far as it was read."""
    ledger_failure: str | None = None
    checks: list[CheckResult] = field(factory=list)
    outcome: Outcome = "could not run"
    failure: str | None = None
    """Why it could not run."""
    aborted_by: str | None = None
    """The check that ended it early."""
    verification: float | None = None
    """Mean seconds in which the slowest target verified a token."""
    unverified: float = 0.0
    """The part of its tokens that the worst target could not verify."""
    interrupted: bool = False
    has_begun: bool = False
    """Whether the generators got their parts; no failure before that is about the load."""
    generators: dict[str, Generator] = field(factory=dict)
    """By name."""
    _connected: dict[tuple[str, int], dict[str, int]] = field(factory=dict)
    """Open connections by process and group; a process has its generator's name and a number."""
    _recent: dict[str, GroupStats] = field(factory=dict)
    """The statistics of the current second, by group."""
    _own: dict[tuple[str, int], GeneratorUsage] = field(factory=dict)
    """What each process did in the current second."""
    _by_generator: dict[str, Counter[str]] = field(factory=lambda: defaultdict(Counter))
    """What each generator's actors counted."""
    _lateness: dict[str, TimeDistribution] = field(factory=lambda: defaultdict(TimeDistribution))
    """Of each generator."""
    _usage: dict[str, ProcessUsage] = field(factory=dict)
    """By target."""
    _first_usage: dict[str, ProcessUsage] = field(factory=dict)
    _most_memory: dict[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.run_stats = stats_of(self.scenario)

    def add(self, generator: str, update: StatsUpdate, process: int = 0) -> None:
        """Add what a process of a generator saw; `ValueError` if it cannot be."""
        check_update(update, self.scenario, self.run_stats)
        self.run_stats.add(update.groups, update.stage)
        connected: dict[str, int] = {}
        for name, by_target in update.groups.items():
            recent = self._recent.setdefault(name, GroupStats())
            for delta in by_target.values():
                recent.add_delta(delta)
                self._by_generator[generator].update(delta.counts)
                if name == GENERATOR and (late := delta.times.get("lateness")):
                    self._lateness[generator].add_encoded(late)
            connected[name] = sum(delta.connected for delta in by_target.values())
        key = (generator, process)
        self._connected[key] = connected
        without_room = GeneratorUsage(dropped=self._keep(update.observations))
        used = update.usage.plus(without_room)
        self._own[key] = self._own.get(key, GeneratorUsage()).plus(used)

    def _keep(self, observations: Observations) -> int:
        """Keep them if there is room; returns how many had none, so that checks may miss them."""
        number = observations.number
        if self._kept + number > MAX_RUN_OBSERVATIONS:
            return number
        self._kept += number
        self.observations.add(observations)
        return 0

    def note(self, at: float, words: str) -> None:
        """Note what was done to a target, or failed beside the run, in seconds of the run."""
        self.events.append(f"{at:4.1f} s  {words}")

    def end_second(
        self, at: float, usage: Mapping[str, ProcessUsage], machine: float | None = None
    ) -> None:
        """Summarize the second that ends now. `usage` is that of the targets that are known,
        `machine` the part of this machine's cores that was busy."""
        self.now = at
        for name, each in usage.items():
            self._first_usage.setdefault(name, each)
            self._most_memory[name] = max(each.resident, self._most_memory.get(name, 0))
        for name, stats in self.run_stats.groups.items():
            recent = self._recent.setdefault(name, GroupStats())
            connected = sum(groups.get(name, 0) for groups in self._connected.values())
            stats.connected = recent.connected = connected
        second = second_of(
            at,
            recent=self._recent,
            own=GeneratorSecond.of(self._own.values()),
            generators=self._generator_seconds(),
            usage=usage,
            before=self._usage,
            last_at=self.seconds[-1].at if self.seconds else 0.0,
            machine=machine,
        )
        self._usage, self._recent, self._own = dict(usage), {}, {}
        self.seconds.append(second)
        self.on_second(second)

    @property
    def _names_generators(self) -> bool:
        """Whether it is of use to tell which generator did what."""
        return len(self.generators) > 1 or any(each.is_agent for each in self.generators.values())

    def _generator_seconds(self) -> dict[str, GeneratorSecond]:
        if not self._names_generators:
            return {}
        return {
            name: GeneratorSecond.of(own for (of, _), own in self._own.items() if of == name)
            for name in self.generators
        }

    def compare_ledger(self, ledgers: Sequence[TargetLedger]) -> None:
        """Compare what the targets say with what clients saw."""
        viewers = viewers_by_stream(self.observations.streams)
        total = self.run_stats.total()
        self.ledger = []
        for each in ledgers:
            stats = self.run_stats.target(each.target) if each.target else total
            self.ledger += compare_ledger(each, stats, viewers.get(each.target, {}))
            self.target_totals[each.target] = each.totals
        crosses = any(each.totals.hop != HopTotals() for each in ledgers)
        if crosses and all(each.is_complete for each in ledgers):
            self.ledger.append(compare_hops(ledgers))

    def failed_check(self) -> str | None:
        """The first check that can no longer pass."""
        for check in all_thresholds(self.scenario.checks):
            if check.evaluate(self.run_stats, final=False) == "failed":
                return check.line
        return None

    def conclude(self) -> None:
        """Evaluate the checks and set the outcome; there are none of a run that never began."""
        self.phase = "done"
        if self.failure is not None and not self.has_begun:
            self.outcome = "could not run"
            return
        scenario = self.scenario
        if not (self.interrupted or self.aborted_by or self.failure):
            reconcile(self.run_stats, self.observations, end=scenario.length, grace=scenario.grace)
        self.run_stats.group("ledger").counts["ledger.wrong"] += sum(
            not each.agrees for each in self.ledger
        )
        self.checks = evaluate_all(all_thresholds(scenario.checks), self.run_stats)
        self.checks += builtin_results(
            self.run_stats,
            self.ledger,
            self.ledger_failure,
            max_lateness=scenario.lateness,
            lateness=self._lateness_by_name(),
            expects_logins=scenario.expects_logins,
        )
        if self.failure is not None:
            self.outcome = "could not run"
        elif self.interrupted:
            self.outcome = "interrupted"
        elif all(check.kept for check in self.checks):
            self.outcome = "kept"
        else:
            self.outcome = "failed"

    def result(self) -> RunResult:
        scenario, stages = self.scenario, self.scenario.stages
        return RunResult(
            scenario=scenario.name,
            started=self.started,
            seconds=self.now,
            workers=sum(each.processes for each in self.generators.values()) or scenario.workers,
            machine=self._machines(),
            load=scenario.load,
            outcome=self.outcome,
            failure=self.failure,
            aborted_by=self.aborted_by,
            stages={
                stage.name: sum(each.duration for each in stages[:number])
                for number, stage in enumerate(stages)
            },
            checks=self.checks,
            ledger=self.ledger,
            groups={name: group_result(each) for name, each in self.run_stats.groups.items()},
            total=group_result(self.run_stats.total()),
            events=self.events,
            generator=GeneratorResult.of(
                (each.generator for each in self.seconds),
                self.run_stats.group(GENERATOR).time("lateness").statistic("p99") or 0.0,
            ),
            generators=self._one_by_one(),
            verification=self.verification,
            unverified=self.unverified,
            full_seconds=sum((each.machine or 0.0) >= FULL_MACHINE for each in self.seconds),
            targets={
                name: self._target_result(name)
                for name in scenario.targets_by_name
                if name != ONLY_TARGET
            },
            by_stage={} if len(stages) == 1 else self._by_stage(),
        )

    def _machines(self) -> str:
        """Those that generated the load."""
        agents = [each.machine for each in self.generators.values() if each.machine is not None]
        return "; ".join(dict.fromkeys(agents)) or describe_machine()

    def _lateness_by_name(self) -> dict[str, float]:
        if not self._names_generators:
            return {}
        return {name: late.statistic("p99") or 0.0 for name, late in self._lateness.items()}

    def _one_by_one(self) -> dict[str, OneGenerator]:
        if not self._names_generators:
            return {}
        late = self._lateness_by_name()
        return {
            name: OneGenerator(
                usage=GeneratorResult.of(
                    (each.generators[name] for each in self.seconds if name in each.generators),
                    late.get(name, 0.0),
                ),
                processes=each.processes,
                machine=each.machine,
                clock_error=each.clock_error,
                sent=self._by_generator[name]["sent"],
                received=self._by_generator[name]["received"],
            )
            for name, each in self.generators.items()
        }

    def _by_stage(self) -> dict[str, StageResult]:
        """What was seen in each stage; stages of the same name are one."""
        durations: Counter[str] = Counter()
        for stage in self.scenario.stages:
            durations[stage.name] += stage.duration
        return {
            name: StageResult(
                seconds=seconds,
                groups={
                    group: evolve(group_result(stats), histograms={})
                    for group, stats in self.run_stats.stages[name].groups.items()
                    if group != GENERATOR
                },
                used=self.used_in_stages.get(name),
            )
            for name, seconds in durations.items()
        }

    def _target_result(self, name: str) -> TargetResult:
        totals = self.target_totals.get(name)
        first, last = self._first_usage.get(name), self._usage.get(name)
        return TargetResult(
            clients=group_result(self.run_stats.target(name)),
            counted=None if totals is None else totals.as_counts(),
            cpu=None if first is None or last is None else last.cpu_seconds - first.cpu_seconds,
            memory=self._most_memory.get(name),
        )
