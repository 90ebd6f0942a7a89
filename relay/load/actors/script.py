"""Runs a script: a Python file with actors that TOML cannot describe.

The file defines ACTORS, a dict of async functions by name, each alone or with a number of actors.
A function is given a `ScriptedActor` and talks to the relay through `relay.client`:

async def door(actor):
    async with actor.connect() as client:
        await client.register(actor.stream("front-door"))
        await client.send_frame(actor.frame(b"picture"))

ACTORS = {"door": (door, 10)}
"""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from relay.client import Alert, Disconnected, Frame, ServerError, SimpleClient, connect
from relay.errors import RelayError
from relay.load.actors.run_context import RunContext
from relay.load.measures.reconciliation.integrity import FrameChecker, FrameMark, append_mark
from relay.load.measures.stats import GroupStats
from relay.load.scenario.scenario import ACTOR_NAME, RESERVED_NAMES


class BadScript(RelayError):
    """A script that cannot be run."""


@define(eq=False)
class ScriptedActor:
    """One actor of a script: its number, its statistics, and its connections."""

    _context: RunContext = field(repr=False)
    name: str
    number: int
    target: str
    """The name of its target, "" if there is one only."""
    stats: GroupStats = field(repr=False)
    _numbers: dict[str, int] = field(factory=dict)
    _checkers: dict[str, FrameChecker] = field(factory=dict)

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._context.now()

    @asynccontextmanager
    async def connect(self, *, service: bool = False) -> AsyncIterator[SimpleClient]:
        """Open an authenticated connection of `relay.client`."""
        endpoint = self._context.endpoint
        token = endpoint.token(self.number, service=service)
        url = endpoint.urls[self.target]
        with self._context.counted_connection():
            async with connect(url, token, tls=self._context.tls(url)) as client:
                yield client

    def stream(self, name: str) -> str:
        """Make a stream id that is unique to this run."""
        return f"load-{self._context.run}-{name}"

    async def until(self, seconds: float) -> None:
        """Wait for a moment of the run; a late wake-up counts as lateness of the generator."""
        await self._context.until(seconds)

    def frame(self, body: bytes, *, stream: str = "", due: float | None = None) -> bytes:
        """Append the mark that viewers check to a frame, and count the frame as sent."""
        number = self._numbers[stream] = self._numbers.get(stream, 0) + 1
        self._context.spend()
        self.stats.counts["sent"] += 1
        due = self.now if due is None else due
        return append_mark(body, FrameMark(self._context.run_id, self.number, 1, number, due))

    async def watch(self, client: SimpleClient, *, of: int = 0) -> AsyncIterator[Frame | Alert]:
        """Yield frames and alerts; frames must come from the actor with the number `of`."""
        async for event in client:
            if isinstance(event, Frame):
                checker = self._checkers.get(event.stream_id)
                if checker is None:
                    checker = FrameChecker(self._context.run_id, of, self.stats.counts)
                    self._checkers[event.stream_id] = checker
                mark = checker.check(event.data, event.seq)
                if mark is not None:
                    self.stats.time("frame_age").record(self.now - mark.due)
                yield event
            elif isinstance(event, Alert):
                self.stats.counts["alerts.received"] += 1
                yield event

    def record(self, time: str, seconds: float) -> None:
        """Add a time to one of the distributions, such as ack_time."""
        self.stats.time(time).record(seconds)

    def count(self, name: str, number: int = 1) -> None:
        self.stats.counts[name] += number


Play = Callable[[ScriptedActor], Awaitable[None]]


def read_script(path: str, source: bytes | None = None) -> dict[str, tuple[Play, int]]:
    """Run a script, or its source where that was sent, and read what actors it has: by name, their
    function and their number. `BadScript`."""
    try:
        if source is None:
            actors: Any = runpy.run_path(path).get("ACTORS")
        else:
            module = {"__name__": "<run_path>"}
            exec(compile(source, path, "exec"), module)  # noqa: S102 (the agent allows this one)
            actors = module.get("ACTORS")
    except (Exception, SystemExit) as error:
        raise BadScript(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(actors, dict) or not actors:
        raise BadScript(f"{path} defines no ACTORS = {{name: async function}}")
    found = {}
    for name, value in actors.items():
        _check_name(str(name), path)
        match value if isinstance(value, tuple) else (value, 1):
            case (play, int(count)) if callable(play) and count >= 0:
                found[str(name)] = (play, count)
            case _:
                words = f"{path}: ACTORS[{name!r}] is not an async function, alone or with a number"
                raise BadScript(words)
    return found


def _check_name(name: str, path: str) -> None:
    """Refuse names that would mean something else in reports and tables; `BadScript`."""
    if not ACTOR_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise BadScript(
            f"{path}: ACTORS[{name!r}]: a name begins with a letter, consists of letters, digits,"
            " dashes and underscores, and is not that of a figure"
        )


async def play_script(context: RunContext, worker: int, of: int) -> None:
    """Run this process's share of the scripted actors until the end of the run."""
    scenario = context.timeline.scenario
    assert scenario.script is not None
    if context.files is None:
        actors = read_script(str(scenario.path(scenario.script)))
    else:
        actors = read_script(scenario.script, context.files.script or b"")
    await context.until(0)
    end = context.epoch + context.timeline.end + scenario.grace
    with trio.CancelScope(deadline=end):
        async with trio.open_nursery() as nursery:
            for name, (play, count) in actors.items():
                for number in range(worker, count, of):
                    target = context.endpoint.target(number)
                    stats = context.stats(name, target)
                    actor = ScriptedActor(context, name, number, target, stats)
                    nursery.start_soon(_play, play, actor)


async def _play(play: Play, actor: ScriptedActor) -> None:
    counts = actor.stats.counts
    try:
        await play(actor)
    except (Disconnected, ServerError, RelayError) as error:
        counts["scripts.failed"] += 1
        actor.stats.error(str(error))
    except Exception as error:  # noqa: BLE001 (an actor's bug becomes a line of the report)
        counts["scripts.failed"] += 1
        actor.stats.error(f"{type(error).__name__}: {error}")
    else:
        counts["scripts.done"] += 1
