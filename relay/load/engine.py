"""Plays one process's share of a scenario. Floor 6.

Everything that is done has a task in one nursery; leaving it ends all of it. What is seen goes out
in parts, each second, and at the end, however that comes, the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import frozen

from relay.load.actor import Actor
from relay.load.figures import Part
from relay.load.groups import Hostiles, Phones, Services, Viewers
from relay.load.hostile import Hostile
from relay.load.listeners import Phone, Viewer
from relay.load.payloads import Library
from relay.load.scenario import Scenario
from relay.load.script import play_script
from relay.load.services import Service
from relay.load.stage import Raised, Sent, Stage, Window

INTERVAL = 1.0
"""Seconds between two parts."""
EMIT_SECONDS = 5.0
HEARTBEAT = 0.02
"""Seconds; how late it comes is how late everything else would."""


@frozen(kw_only=True)
class Share:
    """Which actors of each group this process plays: those whose number leaves this remainder."""

    worker: int = 0
    of: int = 1


@frozen(kw_only=True)
class Parts:
    """What was seen since the last time."""

    at: float
    """Seconds since the start of the run."""
    groups: dict[str, Part]
    windows: list[Window]
    sent: list[Sent]
    raised: list[Raised]


Emit = Callable[[Parts], Awaitable[None]]


async def prepare(stage: Stage, share: Share) -> list[Actor]:
    """The actors of this share, ready to join; `RelayError` when a file cannot be read."""
    library = Library(stage.timeline.scenario.seed)
    return await trio.to_thread.run_sync(make_actors, stage, share, library)


async def play(stage: Stage, share: Share, actors: Sequence[Actor], emit: Emit) -> None:
    """Play until all actors have left; cancelled, they leave at once and hand in what they saw."""
    try:
        async with trio.open_nursery() as helpers:
            helpers.start_soon(_report, stage, emit)
            helpers.start_soon(_beat, stage)
            for name in stage.timeline.scenario.groups:
                helpers.start_soon(_cut, stage, name)
            async with trio.open_nursery() as nursery:
                for actor in actors:
                    nursery.start_soon(actor.live)
                if stage.timeline.scenario.script is not None:
                    nursery.start_soon(play_script, stage, share.worker, share.of)
            helpers.cancel_scope.cancel()
    finally:
        with trio.move_on_after(EMIT_SECONDS, shield=True):
            await emit(take(stage))


def make_actors(stage: Stage, share: Share, library: Library) -> list[Actor]:
    scenario: Scenario = stage.timeline.scenario
    made: list[Actor] = []
    for name, group in scenario.groups.items():
        presences = stage.timeline.presences(name)
        for number in range(share.worker, len(presences), share.of):
            for presence in presences[number]:
                match group:
                    case Phones():
                        payloads = library.payloads(group.frames, scenario.folder, name, number)
                        made.append(Phone(stage, name, number, presence, payloads=payloads))
                    case Viewers():
                        made.append(Viewer(stage, name, number, presence))
                    case Services():
                        made.append(Service(stage, name, number, presence))
                    case Hostiles():
                        made.append(Hostile(stage, name, number, presence))
    return made


def take(stage: Stage) -> Parts:
    """What was seen since the last time."""
    groups = {name: figures.take() for name, figures in stage.book.groups.items()}
    windows, stage.windows = stage.windows, []
    sent, stage.sent = stage.sent, []
    raised, stage.raised = stage.raised, []
    return Parts(at=stage.now(), groups=groups, windows=windows, sent=sent, raised=raised)


async def _report(stage: Stage, emit: Emit) -> None:
    due = 0.0
    while True:
        due += INTERVAL
        await trio.sleep_until(stage.epoch + due)
        with trio.move_on_after(EMIT_SECONDS, shield=True):  # what was taken must arrive
            await emit(take(stage))


async def _beat(stage: Stage) -> None:
    """Beats are due whatever happens: those that a stall swallowed count as well."""
    due = 0.0
    while True:
        await trio.sleep_until(stage.epoch + due)
        lateness = stage.book.group("generator").time("lateness")
        while due <= (now := stage.now()):
            lateness.record(now - due)
            due += HEARTBEAT


async def _cut(stage: Stage, name: str) -> None:
    for at in stage.timeline.cuts(name):
        await stage.until(at)
        stage.cut(name)
