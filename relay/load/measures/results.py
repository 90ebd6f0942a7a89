"""The result of a run, as it is written to JSON, read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from attrs import field, frozen

from relay.errors import RelayError
from relay.load.measures.analysis.noise import Verdict
from relay.load.measures.checks import CheckResult
from relay.load.measures.generator_usage import GeneratorResult, GeneratorSecond, OneGenerator
from relay.load.measures.process_usage import CpuShare, ProcessUsage
from relay.load.measures.reconciliation.ledger import LedgerLine
from relay.load.measures.stats import RATES, GroupStats, TimeDistribution, layer_counts

FORMAT = "relay-load-1"
STATISTICS = ("p50", "p90", "p99", "p999", "mean", "max", "count")
SECOND_AGES = ("p50", "p90", "p99", "max")
"""Statistics of the frame ages in a second."""
GENERATOR = "generator"
"""The group in which the generator reports about itself."""
Outcome = Literal["kept", "failed", "could not run", "interrupted"]


class BadResult(RelayError):
    """A file without a readable result of a run."""


@frozen(kw_only=True)
class UsedByTarget:
    """What the processes of one target used in a second."""

    cpu: float
    """Cores."""
    memory: int
    """Bytes."""


@frozen(kw_only=True)
class GroupSecond:
    """What a group did in one second. Counts, not rates: the last second may be shorter."""

    connected: int
    sent: int
    """Frames, like the two that follow."""
    received: int
    missed: int
    bytes_in: int
    closes: int
    errors: int
    age: dict[str, float]
    """Seconds, by percentile; empty if no frame arrived."""
    ages: str
    """The frame ages as HdrHistogram encodes them; "" if no frame arrived."""


@frozen(kw_only=True)
class Second:
    """One second of a run."""

    at: float
    sent: float
    """Frames per second, like the two that follow."""
    received: float
    missed: float
    bytes_in: float
    """Bytes of frames per second."""
    connected: int
    closes: int
    errors: int
    age: dict[str, float]
    """Seconds, by percentile; empty if no frame arrived."""
    lateness: float
    """p99 of the generator's lateness, in seconds."""
    cpu: float | None = None
    """Cores that all targets used together."""
    memory: int | None = None
    """Bytes, likewise."""
    busiest: float | None = None
    """Cores that the busiest process of the targets used: the one that wanted the most."""
    waited: float | None = None
    """Part of the time in which that process was ready to run and had no core."""
    machine: float | None = None
    """The part of all cores of the coordinator's machine that was busy with anything."""
    targets: dict[str, UsedByTarget] = field(factory=dict)
    """What each of several targets used."""
    layers: dict[str, float] = field(factory=dict)
    """Pictures shown per second, by layer; those without one are not in it."""
    switches: int = 0
    groups: dict[str, GroupSecond] = field(factory=dict)
    """What each group did, without the generator."""
    generator: GeneratorSecond = field(factory=GeneratorSecond)
    generators: dict[str, GeneratorSecond] = field(factory=dict)
    """What each of several generators did, by name."""


@frozen(kw_only=True)
class GroupResult:
    counts: dict[str, int]
    errors: dict[str, int]
    times: dict[str, dict[str, float]]
    """Seconds, by name and statistic."""
    histograms: dict[str, str]
    """As HdrHistogram encodes them."""
    rates: dict[str, float] = field(factory=dict)
    """Pictures per second and switches per minute of a viewer, as in checks; empty for others."""


@frozen(kw_only=True)
class TargetResult:
    """One of several targets."""

    clients: GroupResult
    """What was seen by those that were connected to it."""
    counted: dict[str, int] | None
    """What it counted itself; None if that was not read."""
    cpu: float | None
    """Seconds of CPU time that its processes used; None if that is not known, like the next."""
    memory: int | None
    """Bytes, the most at the end of a second."""


@frozen(kw_only=True)
class UsedInStage:
    """What all targets together used in a stage."""

    cpu: float | None
    """Seconds of CPU time; None if that is not known, like the others."""
    memory: int | None
    """Bytes, at the end."""
    queries: int | None
    """Queries to verify tokens."""


@frozen(kw_only=True)
class StageResult:
    """What was seen in one stage, as far as it is known of a part of a run."""

    seconds: float
    groups: dict[str, GroupResult]
    """Without histograms."""
    used: UsedInStage | None = None
    """None if the stage did not end."""


@frozen(kw_only=True)
class FigureChange:
    """How a figure changed from one run to another."""

    group: str
    figure: str
    before: float | None
    """Seconds or a share; None if it was not measured."""
    after: float | None
    low: float | None
    """The change is between this and `high`, with 95% confidence; None if it is not known."""
    high: float | None
    is_ratio: bool
    """Whether these are parts of `before`, not a difference."""
    seconds: int
    """In how many seconds both runs measured it."""
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.group} {self.figure}"


@frozen(kw_only=True)
class Comparison:
    """How a run compares to one before it."""

    baseline: str
    """The file of the run before."""
    tolerance: float
    seconds: int
    """How many seconds both runs have."""
    changes: list[FigureChange]
    machines: list[str]
    """Of both runs, if they differ."""

    def with_verdict(self, *verdicts: Verdict) -> list[FigureChange]:
        return [each for each in self.changes if each.verdict in verdicts]


@frozen(kw_only=True)
class RunResult:
    scenario: str
    started: float
    """Seconds since the Unix epoch."""
    seconds: float
    workers: int
    machine: str
    outcome: Outcome
    failure: str | None
    aborted_by: str | None
    stages: dict[str, float]
    checks: list[CheckResult]
    ledger: list[LedgerLine]
    groups: dict[str, GroupResult]
    total: GroupResult
    events: list[str] = field(factory=list)
    """What was done to targets, and when."""
    targets: dict[str, TargetResult] = field(factory=dict)
    """By name, if there are several."""
    by_stage: dict[str, StageResult] = field(factory=dict)
    """By name, if there are several stages."""
    load: str = ""
    """A digest of what the scenario lets happen; "" if it is not known."""
    generator: GeneratorResult | None = None
    """None in results of versions that did not measure it."""
    generators: dict[str, OneGenerator] = field(factory=dict)
    """By name, if there were several, or agents."""
    comparison: Comparison | None = None
    """With the run of `--baseline`."""
    verification: float | None = None
    """Mean seconds in which the slowest target verified a token, which asks its database; None if
    it did none, or did not say."""
    unverified: float = 0.0
    """The part of its tokens of which the worst target was not told in time whose they are."""
    full_seconds: int = 0
    """Seconds in which all cores of the coordinator's machine were busy, with whatever it was."""
    format: str = FORMAT
    type: str = "result"

    @property
    def problem(self) -> str | None:
        """Why the run did not end as planned; None if it did."""
        if self.failure is not None:
            return f"could not run: {self.failure}"
        if self.outcome == "interrupted":
            return "interrupted"
        return None if self.aborted_by is None else f"ended early: {self.aborted_by}"

    @property
    def about(self) -> str:
        """Length, number of workers, and machine."""
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        agents = sum(each.machine is not None for each in self.generators.values())
        if agents:
            workers += " of 1 agent" if agents == 1 else f" of {agents} agents"
        return f"{self.seconds:.0f} s, {workers}, {self.machine}"


def second_of(
    at: float,
    *,
    recent: Mapping[str, GroupStats],
    own: GeneratorSecond | None = None,
    generators: Mapping[str, GeneratorSecond] | None = None,
    usage: Mapping[str, ProcessUsage],
    before: Mapping[str, ProcessUsage],
    last_at: float,
    machine: float | None = None,
) -> Second:
    """Summarize what the groups did since `last_at`."""
    length = max(at - last_at, 1e-3)
    total = GroupStats()
    for name, stats in recent.items():
        if name != GENERATOR:
            total.add(stats)
    counts = total.counts
    generator = recent.get(GENERATOR, GroupStats())
    used = {
        name: UsedByTarget(
            cpu=max(0.0, each.cpu_seconds - before[name].cpu_seconds) / length,
            memory=each.resident,
        )
        for name, each in usage.items()
        if name in before
    }
    busiest = _busiest(usage, before, length)
    return Second(
        at=at,
        sent=counts["sent"] / length,
        received=counts["received"] / length,
        missed=(counts["missed"] + counts["lost"]) / length,
        bytes_in=counts["frames.bytes"] / length,
        connected=total.connected,
        closes=counts["closes"],
        errors=sum(total.errors.values()),
        age=_ages_of(total),
        lateness=generator.time("lateness").statistic("p99") or 0.0,
        cpu=sum(each.cpu for each in used.values()) if used else None,
        memory=sum(each.resident for each in usage.values()) if usage else None,
        busiest=None if busiest is None else busiest.used,
        waited=None if busiest is None else busiest.waited,
        machine=machine,
        targets={name: each for name, each in used.items() if name},
        layers={name: number / length for name, number in layer_counts(counts).items()},
        switches=counts["switches"],
        groups={name: _group_second(each) for name, each in recent.items() if name != GENERATOR},
        generator=own or GeneratorSecond(),
        generators=dict(generators or {}),
    )


def _busiest(
    usage: Mapping[str, ProcessUsage], before: Mapping[str, ProcessUsage], length: float
) -> CpuShare | None:
    """Of all targets."""
    shares = (
        each.busiest_since(before[name], length) for name, each in usage.items() if name in before
    )
    return max(
        (each for each in shares if each is not None), key=lambda each: each.wanted, default=None
    )


def _group_second(stats: GroupStats) -> GroupSecond:
    counts, age = stats.counts, stats.times.get("frame_age")
    return GroupSecond(
        connected=stats.connected,
        sent=counts["sent"],
        received=counts["received"],
        missed=counts["missed"] + counts["lost"],
        bytes_in=counts["frames.bytes"],
        closes=counts["closes"],
        errors=sum(stats.errors.values()),
        age=_ages_of(stats),
        ages=age.encode() if age and age.count else "",
    )


def _ages_of(stats: GroupStats) -> dict[str, float]:
    age = stats.times.get("frame_age")
    if age is None or not age.count:
        return {}
    return {name: age.statistic(name) or 0 for name in SECOND_AGES}


def group_result(stats: GroupStats) -> GroupResult:
    return GroupResult(
        counts={name: number for name, number in stats.counts.items() if number},
        errors=dict(stats.errors),
        times={name: statistics_of(times) for name, times in stats.times.items() if times.count},
        histograms={name: times.encode() for name, times in stats.times.items()},
        rates={name: rate for name in RATES if (rate := stats.rate(name)) is not None},
    )


def statistics_of(times: TimeDistribution) -> dict[str, float]:
    return {name: times.statistic(name) or 0.0 for name in STATISTICS}


def checked(result: RunResult) -> RunResult:
    """Return a result that has all fields of this version; `ValueError` for any other."""
    for group in (*result.groups.values(), result.total):
        if any(set(STATISTICS) - values.keys() for values in group.times.values()):
            raise ValueError("a statistic is missing")
    return result


def read_result(path: Path) -> tuple[RunResult, list[Second]]:
    """Read a run that was written with `--json`; `BadResult`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadResult(f"cannot read {path}: {error.strerror}") from None
    seconds: list[Second] = []
    is_search = False
    try:
        for line in lines:
            read = msgspec.json.decode(line)
            is_search |= read.get("type") == "run"
            if read.get("type") == "second":
                seconds.append(msgspec.json.decode(line, type=Second))
            elif read.get("type") == "result":
                if (version := read.get("format")) != FORMAT:
                    raise ValueError(f"its format is {version!r}, not {FORMAT}")
                return checked(msgspec.json.decode(line, type=RunResult)), seconds
    except (msgspec.DecodeError, AttributeError, ValueError, RecursionError) as problem:
        raise BadResult(f"{path} is not a result of `relay load`: {problem}") from None
    if is_search:
        raise BadResult(f"{path} is of `relay load find`: a file of one run is needed")
    raise BadResult(f"{path} holds no result: did the run end early?")
