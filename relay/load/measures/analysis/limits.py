"""What gave way first when a load became too large, and the figures that say so. No I/O.

A machine that makes the load and has no more to give makes a relay look bad, so it is looked at
first, and then the relay is not named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Literal

from attrs import field, frozen

from relay.load.measures.generator_usage import MAX_BUSY
from relay.load.measures.process_usage import FULL_MACHINE, CpuShare
from relay.load.measures.results import RunResult, Second
from relay.load.units import seconds_in_words

Resource = Literal["generator", "machine", "relay", "link", "database", "unknown"]
FULL_CORE = 0.85
"""Cores of the relay's busiest process from which on it is taken for full; what it waited for, too,
if it did not get so much."""
LONG_WAIT = 0.5
"""Part of the time without a core from which on the relay is short of it, whatever it used."""
FULL_LINK = 0.9
"""Part of what the simulated links of a group carry."""
MANY_WITHHELD = 0.01
"""Part of the frames of phones."""
SLOW_DATABASE = 0.1
"""Seconds to verify a token, or to store an alert."""
GROWN = 3.0
"""How many times as long the database must have taken as at the limit."""
MOST_OF_CONNECTING = 0.5
"""Part of the time to connect from which on the verification of the token is most of it."""
MANY_UNVERIFIED = 0.01
"""Part of the tokens."""
SAME_TRAFFIC = 1.1
"""Traffic that grew by less did not grow with the load."""
LOAD_GREW = 1.2
LATENESS_CHECK = "lateness.p99 "
CPU_NOT_KNOWN = (
    "how busy the relay was is not known: it was not started here, or does not say so in /metrics."
    " So its CPU may be what gave way"
)


@frozen(kw_only=True)
class Cause:
    """What gave way first."""

    resource: Resource
    evidence: str
    """Figures of the run that failed, in words."""
    others: list[str] = field(factory=list)
    """What else there is to say: what was full, too, or how much room others had."""

    @property
    def is_generator(self) -> bool:
        """Whether the limit is that of what makes the load."""
        return self.resource in {"generator", "machine"}


@frozen(kw_only=True)
class LevelRun:
    """One run of a search."""

    level: float
    kept: bool
    result: RunResult
    seconds: Sequence[Second] = ()
    capacity: Mapping[str, float] = field(factory=dict)
    """Bytes per second that the simulated links of each group carry to its clients."""
    thin_phones: Sequence[str] = ()
    """Groups of phones with a simulated uplink."""

    @property
    def failed_checks(self) -> list[str]:
        """Each with what was measured."""
        if self.result.problem is not None:
            return [self.result.problem]
        return [
            f"{check.line} ({check.measured})" for check in self.result.checks if not check.kept
        ]

    @property
    def cpu(self) -> float | None:
        """Cores of the relay's busiest process, in its worst seconds."""
        return _worst(each.busiest for each in self.seconds)

    @property
    def cpu_share(self) -> CpuShare | None:
        """What that process got, in the half of the seconds in which it wanted the most."""
        known = [
            CpuShare(used=each.busiest, waited=each.waited)
            for each in self.seconds
            if each.busiest is not None
        ]
        worst = sorted(known, key=lambda each: -each.wanted)[: max(1, len(known) // 2)]
        if not worst:
            return None
        waits = [each.waited for each in worst if each.waited is not None]
        return CpuShare(
            used=fmean(each.used for each in worst), waited=fmean(waits) if waits else None
        )

    @property
    def busy(self) -> float | None:
        """Part of the time that the busiest process of the generator worked, likewise."""
        return _worst(each.generator.busy for each in self.seconds)

    @property
    def machine(self) -> float | None:
        """Part of all cores of this machine that were busy, likewise."""
        return _worst(each.machine for each in self.seconds)

    @property
    def traffic(self) -> float:
        """Bytes per second to all clients, in the seconds with the most."""
        return _worst(each.bytes_in for each in self.seconds) or 0.0

    def figures(self) -> dict[str, float | None]:
        """What a search looks at, by name; CPU in cores, traffic in bytes per second."""
        return {
            "relay_cpu": self.cpu,
            "relay_cpu_wait": None if self.cpu_share is None else self.cpu_share.waited,
            "generator_busy": self.busy,
            "machine_busy": self.machine,
            "traffic": self.traffic,
            "verification": self.result.verification,
        }

    def time(self, name: str, statistic: str) -> float | None:
        return self.result.total.times.get(name, {}).get(statistic)


def _worst(values: Iterable[float | None]) -> float | None:
    """The mean of the larger half: a run begins and ends with little load."""
    known = sorted((each for each in values if each is not None), reverse=True)
    return fmean(known[: max(1, len(known) // 2)]) if known else None


def find_cause(failed: LevelRun, kept: LevelRun | None) -> Cause:
    """What gave way in a run, as far as its figures and those of one that did not fail tell."""
    found = list(_causes(failed, kept))
    if not found and (plateau := _network(failed, kept)):
        found = [Cause(resource="link", evidence=plateau)]
    if not found:
        found = [Cause(resource="unknown", evidence=_nothing_full(failed))]
    first, *others = found
    also = [f"{each.resource}: {each.evidence}" for each in others]
    room = _room(failed, first.resource)
    if room and not also and first.resource != "unknown":
        also = [room]
    if failed.seconds and failed.cpu is None and not first.is_generator:
        also.append(CPU_NOT_KNOWN)
    return Cause(resource=first.resource, evidence=first.evidence, others=also)


def _causes(failed: LevelRun, kept: LevelRun | None) -> Iterator[Cause]:
    if words := "; ".join(_generator(failed)):
        yield Cause(resource="generator", evidence=words)
    machine, relay = _full_machine(failed), _full_relay(failed)
    if machine is not None and (relay is not None or _may_have_waited(failed)):
        yield machine
        machine = None
    if relay is not None:
        yield relay
    yield from _links(failed, kept)
    if words := "; ".join(_database(failed, kept)):
        yield Cause(resource="database", evidence=words)
    if machine is not None:  # it was busy with other work, which took nothing from the relay
        yield machine


def _full_relay(run: LevelRun) -> Cause | None:
    """A relay that used a core, or that got no more of one than it used."""
    share = run.cpu_share
    if _used_a_core(run):
        words = f"its busiest process used {run.cpu:.0%} of a core"
    elif share is not None and (share.wanted >= FULL_CORE or (share.waited or 0.0) >= LONG_WAIT):
        words = (
            f"its busiest process used {share.used:.0%} of a core, and waited for one for"
            f" {share.waited or 0.0:.0%} of the time: others had it, or it may have no more"
        )
    else:
        return None
    return Cause(resource="relay", evidence=words)


def _used_a_core(run: LevelRun) -> bool:
    return run.cpu is not None and run.cpu >= FULL_CORE


def _full_machine(run: LevelRun) -> Cause | None:
    """A machine whose cores were all busy, unless the relay had one of them."""
    if run.machine is None or run.machine < FULL_MACHINE or _used_a_core(run):
        return None
    words = f"all cores of this machine were busy ({run.machine:.0%}), also with other work"
    return Cause(resource="machine", evidence=words)


def _may_have_waited(run: LevelRun) -> bool:
    """Whether it is not known that the relay got all that it wanted of a core."""
    return run.cpu_share is None or run.cpu_share.waited is None


def _generator(run: LevelRun) -> Iterator[str]:
    result = run.result
    late = [check for check in result.checks if check.line.startswith(LATENESS_CHECK)]
    for check in late:
        if not check.kept:
            yield f"it was late by {check.measured} ({check.line})"
    usage = result.generator
    if run.busy is not None and run.busy > MAX_BUSY and usage is not None:
        yield f"its busiest process worked {run.busy:.0%} of the time"
    if usage is not None and usage.dropped:
        yield f"it dropped {usage.dropped} observations"
    if result.failure is not None and "--max-" in result.failure:
        yield result.failure


def _links(failed: LevelRun, kept: LevelRun | None) -> Iterator[Cause]:
    """Simulated links that carried all they can, and did not at the limit."""
    for name in failed.capacity:
        now, before = _carried(failed, name), _carried(kept, name)
        if now >= FULL_LINK > before:
            words = f"the simulated links of {name} carried {now:.0%} of what they can"
            yield Cause(resource="link", evidence=words)
    for name in failed.thin_phones:
        now, before = _withheld(failed, name), _withheld(kept, name)
        if now >= MANY_WITHHELD > before:
            words = f"the simulated uplinks of {name} were too slow for {now:.0%} of their frames"
            yield Cause(resource="link", evidence=words)


def _carried(run: LevelRun | None, name: str) -> float:
    """The part of what the simulated links of a group can carry."""
    capacity = 0.0 if run is None else run.capacity.get(name, 0.0)
    if run is None or not capacity:
        return 0.0
    bytes_in = (each.groups[name].bytes_in for each in run.seconds if name in each.groups)
    return (_worst(bytes_in) or 0.0) / capacity


def _withheld(run: LevelRun | None, name: str) -> float:
    """The part of the frames of a group of phones that were never sent."""
    counts = run.result.groups[name].counts if run is not None and name in run.result.groups else {}
    withheld = counts.get("withheld", 0)
    return withheld / (withheld + counts.get("sent", 0)) if withheld else 0.0


def _database(failed: LevelRun, kept: LevelRun | None) -> Iterator[str]:
    now, before = failed.result.verification, None if kept is None else kept.result.verification
    if than := _grown(now, before) or _most_of_connecting(failed, now):
        yield f"a token was verified in {than}"
    then = None if kept is None else kept.time("ack_time", "p99")
    if than := _grown(failed.time("ack_time", "p99"), then):
        yield f"an alert was stored in {than}"
    unverified = failed.result.unverified
    if unverified >= MANY_UNVERIFIED > (0.0 if kept is None else kept.result.unverified):
        yield f"{unverified:.0%} of the tokens were not verified in time"


def _grown(now: float | None, before: float | None) -> str:
    """A time that became long, with what it was at the limit; "" if it did not."""
    if now is None or now < max(SLOW_DATABASE, GROWN * (before or 0.0)):
        return ""
    then = "" if before is None else f", {seconds_in_words(before)} at the limit"
    return seconds_in_words(now) + then


def _most_of_connecting(run: LevelRun, verification: float | None) -> str:
    """The time to verify a token, if it is why clients were slow to connect; else ""."""
    connecting = run.time("connect_time", "mean")
    is_slow = any("connect_time" in each.line for each in run.result.checks if not each.kept)
    if verification is None or connecting is None or not is_slow:
        return ""
    if verification < max(SLOW_DATABASE, MOST_OF_CONNECTING * connecting):
        return ""
    took = seconds_in_words(connecting)
    return f"{seconds_in_words(verification)}, of the {took} in which clients connected"


def _network(failed: LevelRun, kept: LevelRun | None) -> str:
    """A plateau of traffic, with room everywhere that is measured."""
    if kept is None or failed.level < LOAD_GREW * kept.level or not kept.traffic:
        return ""
    if failed.cpu is None or failed.traffic > SAME_TRAFFIC * kept.traffic:
        return ""
    return (
        f"traffic did not grow with the load: {_megabits(kept)} Mbit/s at {kept.level:g},"
        f" {_megabits(failed)} Mbit/s at {failed.level:g}, and nothing else was full"
    )


def _megabits(run: LevelRun) -> str:
    return f"{run.traffic * 8 / 1e6:.3g}"


def _nothing_full(run: LevelRun) -> str:
    room = _room(run, "unknown")
    return "nothing that is measured was full" + (room and f"; {room}")


def _room(run: LevelRun, but: Resource) -> str:
    """How busy the others were."""
    parts = []
    if run.cpu is not None and but != "relay":
        parts.append(f"the relay's busiest process used {run.cpu:.0%} of a core")
    if run.busy is not None and but != "generator":
        parts.append(f"the generator was busy {run.busy:.0%} of the time")
    return ", ".join(parts)


@frozen(kw_only=True)
class Spread:
    """What the runs at the limit measured of the first check."""

    check: str
    runs: int
    measured: list[str]
    """In the order of the runs."""


@frozen(kw_only=True)
class FindResult:
    """What a search has found, as it is written to JSON."""

    scenario: str
    raised: str
    """What was raised, and in which groups."""
    started: float
    """Seconds since the Unix epoch."""
    machine: str
    limit: float | None
    """None if no load kept the checks."""
    above: float | None
    """The smallest load that failed; None if none did."""
    stopped: str | None
    """Why the search ended before it was done; None if it did not."""
    spread: Spread | None
    cause: Cause | None
    """None if nothing failed."""
    advice: str | None = None
    """What to do where no load kept the checks, if that is known."""
    interrupted: bool = False
    failure: str | None = None
    """Why a run could not be made, or said nothing about its load; the search ended there."""
    type: str = "found"
    format: str = "relay-find-1"

    @property
    def is_complete(self) -> bool:
        """Whether nothing that was asked for is left to be tried."""
        return self.stopped is None and self.failure is None and not self.interrupted
