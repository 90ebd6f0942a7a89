"""The schedule of a run, fixed before it starts. No I/O.

The load model is open: arrivals, frames and alerts are due at times that depend on the scenario and
its seed only, never on the speed of the relay. A relay that stalls does not slow the load down, so
its latency is measured in full (no coordinated omission).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import TypeVar

from attrs import define, field, frozen

from relay.load.scenario.groups import (
    AppPauses,
    Arrival,
    Group,
    LinkChoice,
    Network,
    PhoneGroup,
    ServiceGroup,
)
from relay.load.scenario.scenario import Scenario, changed

G = TypeVar("G", bound=Group)
MOMENT = 1e-6
"""Seconds. A moment at which something changes belongs to what follows, however it is rounded."""


@frozen
class Presence:
    """The time in which an actor takes part, in seconds of the run."""

    join: float
    leave: float


def arrivals(arrival: Arrival, count: int, random: Random) -> Iterator[float]:
    """When each of `count` actors joins, in seconds."""
    at = arrival.after
    for number in range(count):
        if arrival.over is not None:
            yield arrival.after + arrival.over * _part_of(arrival.curve, number / count)
        elif arrival.doubles_every is not None:
            yield arrival.after + arrival.doubles_every * math.log2(number + 1)
        elif arrival.rate is not None:
            yield arrival.after + number / arrival.rate
        elif arrival.poisson is not None:
            at += random.expovariate(arrival.poisson)
            yield at
        else:
            yield at


def _part_of(curve: Sequence[float], part: float) -> float:
    """At which part of the time this part of all has joined."""
    if not curve:
        return part
    wanted = part * sum(curve)
    for number, weight in enumerate(curve):
        if wanted < weight:
            return (number + wanted / weight) / len(curve)
        wanted -= weight
    return 1.0


@frozen
class Pauses:
    """When the app of one actor pauses; all times are in seconds of the run."""

    every: float = math.inf
    lasts: float = 0.0
    phase: float = 0.0
    """The part of `every` that it is past at the start; the pause is at the end of it."""

    @classmethod
    def of(cls, pauses: AppPauses | None, seed: str) -> Pauses:
        if pauses is None:
            return cls()
        phase = Random(seed).random() * pauses.every  # noqa: S311 (load, no secret)
        return cls(pauses.every, pauses.lasts, phase)

    def is_paused(self, at: float) -> bool:
        return at + MOMENT >= self._end(at) - self.lasts

    def next_change(self, at: float) -> float:
        """When a pause begins or ends."""
        end = self._end(at)
        return end if self.is_paused(at) else end - self.lasts

    def resumed(self, at: float) -> float:
        """This time, or the end of the pause that it is in."""
        return self.next_change(at) if self.is_paused(at) else at

    def _end(self, at: float) -> float:
        """When the next pause ends, or the one that it is in."""
        if math.isinf(self.every):
            return math.inf
        return (math.floor((at + self.phase + MOMENT) / self.every) + 1) * self.every - self.phase


@define(eq=False)
class Timeline:
    """The schedule of a scenario. All times are in seconds of the run."""

    scenario: Scenario
    starts: list[float] = field(init=False)
    """When each stage starts."""
    end: float = field(init=False)
    _groups: dict[tuple[str, int], Group] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        durations = [stage.duration for stage in self.scenario.stages]
        self.starts = [0.0, *accumulate(durations)][:-1]
        self.end = sum(durations)

    def stage_at(self, at: float) -> int:
        return max(0, bisect_right(self.starts, at) - 1)

    def group_in(self, name: str, stage: int) -> Group:
        found = self._groups.get((name, stage))
        if found is None:
            found = self._groups[name, stage] = changed(self.scenario, stage, name)
        return found

    def stage_end(self, stage: int) -> float:
        return self.starts[stage + 1] if stage + 1 < len(self.starts) else self.end

    def group_at(self, name: str, at: float) -> tuple[Group, float]:
        """A group at a time, and when another stage begins."""
        stage = self.stage_at(at)
        following = self.starts[stage + 1 : stage + 2]
        return self.group_in(name, stage), following[0] if following else math.inf

    def networks(self, name: str) -> list[Network]:
        """The network of a group in each stage."""
        return [self.group_in(name, stage).network for stage in range(len(self.starts))]

    def links(self, name: str) -> list[LinkChoice]:
        """The links of a group, of all stages."""
        groups = (self.group_in(name, stage) for stage in range(len(self.starts)))
        return [group.link for group in groups if group.link is not None]

    def pauses(self, name: str, number: int) -> Pauses:
        """When the app of an actor pauses."""
        pauses = self.scenario.groups[name].pauses
        return Pauses.of(pauses, f"{self.scenario.seed} {name} {number} pauses")

    def most(self, name: str) -> int:
        """The largest number of actors that the group has in any stage."""
        return max(self.group_in(name, stage).count for stage in range(len(self.starts)))

    def presences(self, name: str) -> list[list[Presence]]:
        """The presence of each actor of a group. Actors due after the end do not join."""
        random = Random(f"{self.scenario.seed} {name} arrivals")  # noqa: S311 (load, no secret)
        joined: dict[int, float] = {}
        found: list[list[Presence]] = [[] for _ in range(self.most(name))]
        present = 0
        for stage, start in enumerate(self.starts):
            group = self.group_in(name, stage)
            for number in range(group.count, present):
                if (join := joined.pop(number, math.inf)) < start:
                    found[number].append(Presence(join, start))
            coming = range(present, group.count)
            for number, at in zip(
                coming, arrivals(group.arrival, len(coming), random), strict=True
            ):
                joined[number] = start + at
            present = group.count
        for number, join in joined.items():
            if join < self.end:
                found[number].append(Presence(join, self.end))
        return found

    def cuts(self, name: str) -> list[float]:
        """When all connections of a group are cut."""
        return [
            start
            for start, stage in zip(self.starts, self.scenario.stages, strict=True)
            if name in stage.cut
        ]

    def frames_due(self, name: str, number: int, presence: Presence) -> Iterator[float]:
        """When each frame of a phone is due. Phones start at random phases."""
        random = Random(f"{self.scenario.seed} {name} {number} frames")  # noqa: S311 (no secret)
        at: float | None = None
        for stage, start, end in self._stages_of(presence):
            group = self.group_in(name, stage)
            assert isinstance(group, PhoneGroup)
            if not group.fps:
                at = None
                continue
            interval = 1 / group.fps
            if at is None:
                at = start + random.random() * interval
            at = max(at, start)
            while at < end:
                yield at
                at += interval

    def alerts_due(self, name: str, number: int, presence: Presence) -> Iterator[float]:
        """When each alert of a service is due."""
        random = Random(f"{self.scenario.seed} {name} {number} alerts")  # noqa: S311 (no secret)
        for stage, start, end in self._stages_of(presence):
            group = self.group_in(name, stage)
            assert isinstance(group, ServiceGroup)
            at = start
            while True:
                gap = random.expovariate(group.rate) if group.poisson else 1 / group.rate
                at += gap * (random.random() if at == start and not group.poisson else 1)
                if at >= end:
                    break
                yield at

    def _stages_of(self, presence: Presence) -> Iterator[tuple[int, float, float]]:
        for stage, start in enumerate(self.starts):
            begin, end = max(start, presence.join), min(self.stage_end(stage), presence.leave)
            if begin < end:
                yield stage, begin, end
