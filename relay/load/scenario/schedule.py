"""The schedule of a run, fixed before it starts. No I/O.

The load model is open: arrivals, frames and alerts are due at times that depend on the scenario and
its seed only, never on the speed of the relay. A relay that stalls does not slow the load down, so
its latency is measured in full (no coordinated omission).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import TypeVar

from attrs import define, field, frozen

from relay.load.scenario.groups import (
    Arrival,
    Group,
    Network,
    PhoneGroup,
    ServiceGroup,
)
from relay.load.scenario.scenario import Scenario, changed

G = TypeVar("G", bound=Group)


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
            yield arrival.after + arrival.over * number / count
        elif arrival.rate is not None:
            yield arrival.after + number / arrival.rate
        elif arrival.poisson is not None:
            at += random.expovariate(arrival.poisson)
            yield at
        else:
            yield at


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

    def network_at(self, name: str, at: float) -> tuple[Network, float]:
        """The network of a group at a time, and when another stage begins."""
        stage = self.stage_at(at)
        following = self.starts[stage + 1 : stage + 2]
        return self.group_in(name, stage).network, following[0] if following else math.inf

    def networks(self, name: str) -> list[Network]:
        """The network of a group in each stage."""
        return [self.group_in(name, stage).network for stage in range(len(self.starts))]

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
