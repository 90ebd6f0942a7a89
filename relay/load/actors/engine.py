"""Runs one process's share of a scenario.

All tasks are in one nursery. Every second an update of the statistics is emitted, and a last one at
the end, also after a cancellation.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from heapq import merge
from itertools import count

import trio
from attrs import evolve, frozen

from relay.load.actors.actor import Actor
from relay.load.actors.frames.payloads import PayloadFactory
from relay.load.actors.hostile import Hostile
from relay.load.actors.phone import Phone
from relay.load.actors.run_context import RunContext
from relay.load.actors.script import play_script
from relay.load.actors.service import AlertService
from relay.load.actors.viewer import Viewer
from relay.load.measures.generator_usage import GeneratorUsage
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.stats import StatsDelta
from relay.load.scenario.groups import HostileGroup, PhoneGroup, ServiceGroup, ViewerGroup
from relay.load.scenario.scenario import Scenario

UPDATE_INTERVAL = 1.0
"""Seconds between two updates."""
UPDATE_TIMEOUT = 5.0
BACKGROUND_NICENESS = 10
HEARTBEAT_INTERVAL = 0.02
"""Seconds between two measurements of the generator's own lateness."""


@frozen(kw_only=True)
class Share:
    """Which actors of each group this process plays: those with number % of == worker."""

    worker: int = 0
    of: int = 1

    def is_background(self, scenario: Scenario) -> bool:
        """Whether this process plays the groups in the background, and no other."""
        return self.of > 1 and self.worker == self.of - 1 and bool(scenario.background)

    def members(self, scenario: Scenario, *, background: bool, count: int) -> range:
        """The numbers of those actors of a group that this process plays."""
        if self.of == 1 or not scenario.background:
            return range(self.worker, count, self.of)
        if background or self.is_background(scenario):
            return range(count) if background and self.is_background(scenario) else range(0)
        return range(self.worker, count, self.of - 1)

    def of_script(self, scenario: Scenario) -> tuple[int, int]:
        """Which of how many parts of a script's actors it plays."""
        return self.worker, self.of - bool(scenario.background and self.of > 1)


@frozen
class StatsUpdate:
    """What a process saw since its last update."""

    groups: dict[str, dict[str, StatsDelta]]
    """By group and target; see `DeltasByTarget`."""
    observations: Observations
    stage: str
    """The stage in which it was seen; an update is sent at the end of each."""
    usage: GeneratorUsage = GeneratorUsage()  # noqa: RUF009 (frozen)


Emit = Callable[[StatsUpdate], Awaitable[None]]


async def prepare(context: RunContext, share: Share) -> list[Actor]:
    """Make the actors of this share; `RelayError` when a file cannot be read."""
    factory = PayloadFactory(context.timeline.scenario.seed, context.files)
    await trio.to_thread.run_sync(context.networks.open)
    return await trio.to_thread.run_sync(make_actors, context, share, factory)


async def play(context: RunContext, share: Share, actors: Sequence[Actor], emit: Emit) -> None:
    """Run until all actors have left. A cancellation makes them leave at once."""
    context.is_background = share.is_background(context.timeline.scenario)
    try:
        if context.is_background:
            os.nice(BACKGROUND_NICENESS)
        with context.own_load.measuring():
            await _play(context, share, actors, emit)
    finally:
        with trio.move_on_after(UPDATE_TIMEOUT, shield=True):
            await emit(drain_update(context, context.timeline.stage_at(context.now())))


async def _play(context: RunContext, share: Share, actors: Sequence[Actor], emit: Emit) -> None:
    async with trio.open_nursery() as helpers:
        helpers.start_soon(_send_updates, context, emit)
        helpers.start_soon(_measure_lateness, context)
        for name in context.timeline.scenario.groups:
            helpers.start_soon(_cut_connections, context, name)
        async with trio.open_nursery() as nursery:
            for actor in actors:
                nursery.start_soon(actor.live)
            if context.timeline.scenario.script is not None and not context.is_background:
                nursery.start_soon(
                    play_script, context, *share.of_script(context.timeline.scenario)
                )
        helpers.cancel_scope.cancel()


def make_actors(context: RunContext, share: Share, factory: PayloadFactory) -> list[Actor]:
    scenario = context.timeline.scenario
    made: list[Actor] = []
    for name, group in scenario.groups.items():
        presences = context.timeline.presences(name)
        numbers = share.members(scenario, background=group.background, count=len(presences))
        for number in numbers:
            for presence in presences[number]:
                match group:
                    case PhoneGroup():
                        payloads = factory.payloads(group, scenario.folder, name, number)
                        made.append(Phone(context, name, number, presence, payloads=payloads))
                    case ViewerGroup():
                        made.append(Viewer(context, name, number, presence))
                    case ServiceGroup():
                        made.append(AlertService(context, name, number, presence))
                    case HostileGroup():
                        made.append(Hostile(context, name, number, presence))
    return made


def drain_update(context: RunContext, stage: int) -> StatsUpdate:
    name = context.timeline.scenario.stages[stage].name
    for group, watch_time in context.watch_times.items():
        watch_time.count(context.stats(group).counts, context.now())
    groups: dict[str, dict[str, StatsDelta]] = defaultdict(dict)
    for (group, target), stats in context.parts.items():
        groups[group][target] = stats.drain()
    observations = context.observations.drain()
    usage = context.own_load.drain(observations.dropped)
    if context.is_background:  # it may be as busy as it likes
        usage = evolve(usage, busy=0.0)
    return StatsUpdate(groups, observations, name, usage)


async def _send_updates(context: RunContext, emit: Emit) -> None:
    stages = context.timeline.starts[1:]
    stage = 0
    for due in merge(count(UPDATE_INTERVAL, UPDATE_INTERVAL), stages):
        await trio.sleep_until(context.epoch + due)
        with trio.move_on_after(
            UPDATE_TIMEOUT, shield=True
        ):  # drained statistics must not get lost
            await emit(drain_update(context, stage))
        stage = bisect_right(stages, due)


async def _measure_lateness(context: RunContext) -> None:
    """Record how late each heartbeat is, including those that a stall delayed."""
    due = 0.0
    while True:
        await trio.sleep_until(context.epoch + due)
        while due <= (now := context.now()):
            context.note_lateness(now - due)
            due += HEARTBEAT_INTERVAL


async def _cut_connections(context: RunContext, name: str) -> None:
    for at in context.timeline.cuts(name):
        await context.until(at)
        context.cut(name)
