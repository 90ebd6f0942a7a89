"""The generators of a run, as the coordinator sees them: workers of this machine, and agents."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define, field

from relay.errors import RelayError
from relay.load.actors.engine import StatsUpdate
from relay.load.measures.stats import plain
from relay.load.measures.trials import TrialResult
from relay.load.run.agents.clocks import ClockComparison, ClockFilter
from relay.load.run.processes import open_process
from relay.load.run.wire import (
    MAX_AGENT_BYTES,
    MAX_WIRE_BYTES,
    Assignment,
    BadMessage,
    ClockProbe,
    ClockReading,
    GeneratorReady,
    MessagePipe,
    Order,
    RunDone,
    StartSignal,
    Statement,
    StopSignal,
    TrialMessage,
    UpdateMessage,
)

FIRST_PROBES = 16
PROBE_INTERVAL = 1.0
FIRST_PROBE_TIMEOUT = 2.0
GONE_TIMEOUT = 5.0
"""Seconds without a word after which an agent takes its coordinator for gone, and the other way
round. Both speak each second."""
STALL_TIMEOUT = 10.0
"""Seconds without an update after which a process of an agent stands still."""


MAX_TRIALS = 100
"""Of a self-test; there are far fewer."""


class RunFailed(RelayError):
    """The run could not be completed."""


OnUpdate = Callable[[str, int, StatsUpdate], object]
"""Is called with the generator's name, the number of its process, and what that saw."""


@define(eq=False)
class Generator:
    """One generator, and what it said so far. `follow` must run; errors name the generator."""

    name: str
    _pipe: MessagePipe
    processes: int = 1
    machine: str | None = None
    """Of an agent, in words; None on this machine."""
    clock: ClockFilter | None = None
    """None on this machine, whose clock it has."""
    trials: list[TrialResult] = field(factory=list)
    is_ready: trio.Event = field(factory=trio.Event)
    has_clock: trio.Event = field(factory=trio.Event)
    is_done: trio.Event = field(factory=trio.Event)
    _start: float | None = None
    """By our clock."""
    _heard: dict[int, float] = field(factory=dict)
    """When each process last sent an update, by Trio's clock."""
    _probes: dict[int, float] = field(factory=dict)
    """When those without an answer left, by our clock."""
    _answered: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    @property
    def is_agent(self) -> bool:
        return self.clock is not None

    @property
    def clock_error(self) -> float | None:
        """By how much its times may be wrong, in seconds; None on this machine."""
        return None if self.clock is None else self.clock.worst_error

    async def send(self, order: Order) -> None:
        """`RunFailed`, `BadMessage` if it is too large."""
        try:
            await self._pipe.send(order)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._failed("has ended") from None

    async def follow(self, on_update: OnUpdate) -> None:
        """Read what it says, until it is done; `RunFailed`."""
        async with trio.open_nursery() as nursery:
            if self.clock is not None:
                nursery.start_soon(self._keep_time)
            await self._follow(on_update)
            nursery.cancel_scope.cancel()

    async def start(self, at: float) -> None:
        """Let it start at a time of our monotonic clock."""
        self._start = at
        self._heard = dict.fromkeys(range(self.processes), trio.current_time())
        await self._tell_start()

    async def stop(self) -> None:
        """Ask it to send its last update and to end."""
        with suppress(RunFailed):
            await self.send(StopSignal())

    async def _follow(self, on_update: OnUpdate) -> None:
        while not self.is_done.is_set():
            with trio.move_on_after(self._patience()) as waiting:
                statement = await self._receive()
            if waiting.cancelled_caught:
                raise self._failed(f"has said nothing for {GONE_TIMEOUT:g} s")
            match statement:
                case UpdateMessage(update=update, process=process) if process in self._heard:
                    self._heard[process] = trio.current_time()
                    on_update(self.name, process, update)
                case GeneratorReady():
                    self.is_ready.set()
                case ClockReading() if self.clock is not None:
                    await self._compare(self.clock, statement)
                case TrialMessage(trial=trial) if self._may_show(trial):
                    self.trials.append(trial)
                case RunDone(failure=None):
                    self.is_done.set()
                case RunDone(failure=str(failure)):
                    raise RunFailed(f"{self.name}: {plain(failure)}" if self.is_agent else failure)
                case None:
                    raise self._failed("has ended" if self._start is None else "ended too early")
                case _:
                    raise self._failed("says something else than it should")
            self._check_progress()

    def _may_show(self, trial: TrialResult) -> bool:
        names = (trial.name, *trial.times, *trial.faults)
        return len(self.trials) < MAX_TRIALS and all(each.isprintable() for each in names)

    async def _receive(self) -> Statement | None:
        try:
            return await self._pipe.statement(MAX_AGENT_BYTES if self.is_agent else MAX_WIRE_BYTES)
        except BadMessage as problem:  # a script may have written to the worker's descriptor
            raise self._failed(f"cannot be understood: {problem}") from None

    def _patience(self) -> float:
        """Seconds for which it may be silent: it answers probes from when it is ready."""
        return GONE_TIMEOUT if self.is_agent and self.is_ready.is_set() else math.inf

    def _check_progress(self) -> None:
        if not self.is_agent or self.is_done.is_set():
            return
        for process, heard in self._heard.items():
            if trio.current_time() - max(heard, self._begins()) > STALL_TIMEOUT:
                which = f"process {process + 1} of it" if self.processes > 1 else "it"
                raise self._failed(f"stalls: {which} sent no update for {STALL_TIMEOUT:g} s")

    def _begins(self) -> float:
        """When the run begins, by Trio's clock."""
        assert self._start is not None
        return trio.current_time() + self._start - time.monotonic()

    # -- its clock

    async def _keep_time(self) -> None:
        """Compare the clocks as soon as it is ready, and each second from then on."""
        assert self.clock is not None
        await self.is_ready.wait()
        for number in range(FIRST_PROBES):
            await self._probe(number)
            with trio.move_on_after(FIRST_PROBE_TIMEOUT):
                await self._answered.park()
        self.clock.begin(time.monotonic())
        self.has_clock.set()
        number = FIRST_PROBES
        while True:
            await trio.sleep(PROBE_INTERVAL)
            await self._probe(number)
            number += 1

    async def _probe(self, number: int) -> None:
        self._probes[number] = time.monotonic()
        self._probes.pop(number - FIRST_PROBES, None)
        await self.send(ClockProbe(number))

    async def _compare(self, clock: ClockFilter, reading: ClockReading) -> None:
        now, sent = time.monotonic(), self._probes.pop(reading.number, None)
        if sent is None or not math.isfinite(reading.at):
            return
        clock.add(ClockComparison.of(sent, reading.at, now))
        self._answered.unpark_all()
        if clock.correct(now) and self._start is not None:
            await self._tell_start()

    async def _tell_start(self) -> None:
        assert self._start is not None
        offset = 0.0 if self.clock is None else self.clock.offset
        await self.send(StartSignal(self._start + offset))

    def _failed(self, what: str) -> RunFailed:
        return RunFailed(f"{self.name} {what}")


@asynccontextmanager
async def open_worker(number: int) -> AsyncIterator[Generator]:
    """Start a worker on this machine; it ends with the block."""
    async with open_process() as pipe:
        yield Generator(f"worker {number + 1}", pipe)


async def assign(generators: Sequence[Generator], assignments: Sequence[Assignment]) -> None:
    """Give each its assignment, and wait until all are ready and have a clock. They are followed
    meanwhile. `RunFailed`."""
    async with trio.open_nursery() as nursery:
        for generator, assignment in zip(generators, assignments, strict=True):
            nursery.start_soon(generator.send, assignment)
    for generator in generators:
        await generator.is_ready.wait()
        if generator.is_agent:
            await generator.has_clock.wait()
