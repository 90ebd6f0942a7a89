"""Runs what TOML cannot say: a Python file with an async function for each actor. Floor 6.

The file defines ACTORS, a table of async functions by name. Each is given an `Actor` and talks to
the relay through `relay.client`:

async def door(actor):
    async with actor.connect() as client:
        await client.register(actor.stream("front-door"))
        await client.send_frame(actor.frame(b"picture"))

ACTORS = {"door": (door, 10)}
"""

from __future__ import annotations

import runpy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from attrs import define, field

from relay.client import Alert, Client, Disconnected, Frame, ServerError, connect
from relay.errors import RelayError
from relay.load.content import FrameJudge, Mark, seal
from relay.load.figures import Figures
from relay.load.stage import Stage, is_encrypted


class BadScript(RelayError):
    """A script that cannot be played."""


@define(eq=False)
class ScriptedActor:
    """What an async function of a script gets: its number, its figures, and a way in."""

    _stage: Stage = field(repr=False)
    name: str
    number: int
    figures: Figures = field(repr=False)
    _numbers: dict[str, int] = field(factory=dict)
    _judges: dict[str, FrameJudge] = field(factory=dict)

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._stage.now()

    def connect(self, *, service: bool = False) -> AbstractAsyncContextManager[Client]:
        """A connection of `relay.client`, authenticated."""
        token = self._stage.address.token(self.number, service=service)
        url = self._stage.address.url
        return connect(url, token, tls=self._stage.tls() if is_encrypted(url) else None)

    def stream(self, name: str) -> str:
        """A stream id that no other run uses."""
        return f"load-{self._stage.run}-{name}"

    async def until(self, seconds: float) -> None:
        """Wait for a moment of the run; how late the generator wakes is counted."""
        await self._stage.until(seconds)

    def frame(self, body: bytes, *, stream: str = "", due: float | None = None) -> bytes:
        """A frame with the mark by which viewers know it; count it as sent."""
        number = self._numbers[stream] = self._numbers.get(stream, 0) + 1
        self.figures.counts["sent"] += 1
        return seal(
            body,
            Mark(self._stage.run_id, self.number, 1, number, self.now if due is None else due),
        )

    async def watch(self, client: Client, *, of: int = 0) -> AsyncIterator[Frame | Alert]:
        """The frames and alerts that come; those of the actor with the number `of` are judged."""
        async for event in client:
            if isinstance(event, Frame):
                judge = self._judges.get(event.stream_id)
                if judge is None:
                    judge = FrameJudge(self._stage.run_id, of, self.figures.counts)
                    self._judges[event.stream_id] = judge
                mark = judge.take(event.data, event.seq)
                if mark is not None:
                    self.figures.time("frame_age").record(self.now - mark.due)
                yield event
            elif isinstance(event, Alert):
                self.figures.counts["alerts.received"] += 1
                yield event

    def record(self, time: str, seconds: float) -> None:
        """Add to one of the distributions, such as ack_time."""
        self.figures.time(time).record(seconds)

    def count(self, name: str, number: int = 1) -> None:
        self.figures.counts[name] += number


Play = Callable[[ScriptedActor], Awaitable[None]]


def read_script(path: str) -> dict[str, tuple[Play, int]]:
    """The actors of a script: what each does, and how many there are. `BadScript`."""
    try:
        actors: Any = runpy.run_path(path).get("ACTORS")
    except (Exception, SystemExit) as error:
        raise BadScript(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(actors, dict) or not actors:
        raise BadScript(f"{path} defines no ACTORS = {{name: async function}}")
    found = {}
    for name, value in actors.items():
        match value if isinstance(value, tuple) else (value, 1):
            case (play, int(count)) if callable(play) and count >= 0:
                found[str(name)] = (play, count)
            case _:
                words = f"{path}: ACTORS[{name!r}] is no async function, alone or with a number"
                raise BadScript(words)
    return found


async def play_script(stage: Stage, worker: int, of: int) -> None:
    """Play this process's share of the scripted actors until the end of the run."""
    scenario = stage.timeline.scenario
    assert scenario.script is not None
    actors = read_script(str(scenario.path(scenario.script)))
    await stage.until(0)
    end = stage.epoch + stage.timeline.end + scenario.grace
    with trio.CancelScope(deadline=end):
        async with trio.open_nursery() as nursery:
            for name, (play, count) in actors.items():
                for number in range(worker, count, of):
                    actor = ScriptedActor(stage, name, number, stage.book.group(name))
                    nursery.start_soon(_play, play, actor)


async def _play(play: Play, actor: ScriptedActor) -> None:
    counts = actor.figures.counts
    try:
        await play(actor)
    except (Disconnected, ServerError, RelayError) as error:
        counts["scripts.failed"] += 1
        actor.figures.error(str(error))
    except Exception as error:  # noqa: BLE001 (one actor's bug is a line in the report)
        counts["scripts.failed"] += 1
        actor.figures.error(f"{type(error).__name__}: {error}")
    else:
        counts["scripts.done"] += 1
