"""Checks what a generator says that it saw: somebody may have taken over an agent. No I/O.

Figures are believed, but they cannot fail in later arithmetic, name what there is not, fill the
memory of the coordinator, or write to its terminal.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

from relay.load.actors.engine import StatsUpdate
from relay.load.measures.generator_usage import GeneratorUsage
from relay.load.measures.reconciliation.observations import Observations, StreamObservation
from relay.load.measures.results import GENERATOR
from relay.load.measures.stats import RunStats, StatsDelta
from relay.load.scenario.scenario import ACTOR_NAME, ONLY_TARGET, Scenario

MAX_FIGURE_NAMES = 500
"""Different counts, or times, of one group."""
MAX_RUN_GROUPS = 1000
"""Groups of a run; a script may choose their names."""
MAX_NAME_CHARS = 400
MAX_NUMBER = 1 << 62
"""Larger than any count, and a message can still hold it."""


def check_update(update: StatsUpdate, scenario: Scenario, known: RunStats) -> None:
    """`ValueError` if an update cannot be added to what is known."""
    _check_groups(update, scenario, known)
    for name, by_target in update.groups.items():
        for delta in by_target.values():
            _check_delta(delta)
            stats = known.groups.get(name)
            if stats is not None:
                _check_number(stats.counts.keys() | delta.counts.keys())
                _check_number(stats.times.keys() | delta.times.keys())
    _check_usage(update.usage)
    _check_observations(update.observations, scenario)


def _check_groups(update: StatsUpdate, scenario: Scenario, known: RunStats) -> None:
    """Refuse names that are not the scenario's; only a script may choose some."""
    groups = {*scenario.groups, GENERATOR}
    if scenario.script is None and update.groups.keys() - groups:
        raise ValueError("there is no such group")
    if len(known.groups.keys() | update.groups.keys()) > MAX_RUN_GROUPS:
        raise ValueError(f"more than {MAX_RUN_GROUPS} groups")
    targets = {*scenario.targets_by_name, ONLY_TARGET}
    if any(by_target.keys() - targets for by_target in update.groups.values()):
        raise ValueError("there is no such target")
    if not all(map(ACTOR_NAME.fullmatch, update.groups)):
        raise ValueError("there is no such group")


def _check_delta(delta: StatsDelta) -> None:
    _check_names((*delta.counts, *delta.times))
    _check_number(delta.counts)
    _check_number(delta.times)
    _check_numbers((*delta.counts.values(), *delta.errors.values(), delta.connected))


def _check_number(names: Collection[str]) -> None:
    if len(names) > MAX_FIGURE_NAMES:
        raise ValueError(f"more than {MAX_FIGURE_NAMES} counts or times of one group")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.isprintable() or len(name) > MAX_NAME_CHARS:
            raise ValueError("a name has characters that cannot be shown, or too many")


def _check_numbers(numbers: Iterable[int]) -> None:
    if any(not -MAX_NUMBER <= number <= MAX_NUMBER for number in numbers):
        raise ValueError("a number is too large")


def _check_usage(usage: GeneratorUsage) -> None:
    _check_times((usage.seconds, usage.busy, usage.gc_pause))
    if min(usage.seconds, usage.busy, usage.gc_pause, usage.dropped) < 0:
        raise ValueError("a part of what the generator used is below 0")
    _check_numbers((usage.dropped,))


def _check_times(times: Iterable[float]) -> None:
    if not all(map(math.isfinite, times)):
        raise ValueError("a time is no number")


def _check_observations(observations: Observations, scenario: Scenario) -> None:
    groups, targets = scenario.groups.keys(), {*scenario.targets_by_name, ONLY_TARGET}
    for seen in observations.streams:
        if seen.group not in groups or seen.target not in targets:
            raise ValueError("there is no such group or target")
        _check_times((seen.start, seen.end))
        _check_names((seen.stream, *seen.alerts))
        _check_numbers(_numbers_of(seen))
    for sent in observations.sent:
        _check_times((sent.start, sent.end))
        _check_names((sent.stream,))
        _check_numbers((sent.first, sent.last))
    for alert in observations.alerts:
        _check_times((alert.due, alert.accepted))
        _check_names((alert.sender, alert.stream))
        _check_numbers((alert.number,))
    _check_numbers((observations.dropped,))


def _numbers_of(seen: StreamObservation) -> Iterator[int]:
    yield from (number for number in (seen.first, seen.last) if number is not None)
    yield seen.missed
    for ranges in seen.alerts.values():
        for low, high in ranges:
            yield low
            yield high
