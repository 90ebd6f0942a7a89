"""`relay load agent`: plays its part of the runs of coordinators on other machines.

The agent itself plays nothing. It proves who calls, takes one run at a time, checks what it is
asked for, gives it to worker processes of its own, and passes on what these say. It opens no file
that a coordinator names. When the coordinator is silent for some seconds, its workers end.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from importlib.metadata import version

import msgspec
import trio
from attrs import define, field

from relay.cluster.links.doors import Gate, accept_sockets
from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.sent_files import SentFiles
from relay.load.measures.stats import plain
from relay.load.run.agents.handshake import accept_coordinator, fingerprint_of
from relay.load.run.agents.permit import check_assignment
from relay.load.run.generator import GONE_TIMEOUT
from relay.load.run.machine import describe_machine
from relay.load.run.processes import SELF_TEST, WORKER, open_process
from relay.load.run.wire import (
    Assignment,
    BadMessage,
    ClockProbe,
    ClockReading,
    GeneratorReady,
    Greeting,
    MessagePipe,
    Order,
    Permit,
    RunDone,
    SelfTestOrder,
    StartSignal,
    StopSignal,
    TrialMessage,
    UpdateMessage,
)
from relay.transport.listener import ListeningSocket
from relay.transport.pinned_key import PinnedKey

ASSIGNMENT_TIMEOUT = 60.0
"""Seconds in which an assignment must have come, and its actors must be made."""
LAST_WORD_TIMEOUT = 5.0
MAX_LATER_ORDER_BYTES = 4096
"""Of orders after the assignment."""


class PartEnded(RelayError):
    """An agent ends its part of a run, for the reason that the message says."""


@define(eq=False)
class Agent:
    """Takes one run at a time from these coordinators."""

    key: PinnedKey = field(repr=False)
    coordinators: frozenset[str]
    """SHA-256 of their certificates."""
    permit: Permit
    processes: int
    say: Callable[[str], object]
    """Is given a line for the person who runs the agent."""
    gate: Gate = field(factory=lambda: Gate("agent"))
    _is_busy: bool = False

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.key)

    async def run(self, listeners: Sequence[ListeningSocket]) -> None:
        """Accept coordinators until cancelled; the listeners are closed then."""
        await accept_sockets(listeners, self.receive)

    async def receive(self, connection: socket.socket) -> None:
        """Serve one connection to its end; never raises."""
        prove = partial(accept_coordinator, key=self.key, coordinators=self.coordinators)
        stream = await self.gate.admit(connection, prove)
        if stream is None:
            return
        try:
            await self.serve(MessagePipe(stream, stream))
        finally:
            await trio.aclose_forcefully(stream)

    async def serve(self, pipe: MessagePipe) -> None:
        """Take the order of a coordinator that has proven who it is; never raises."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._greet(pipe)

    async def _greet(self, pipe: MessagePipe) -> None:
        greeting = Greeting(
            version=version("relay"),
            machine=describe_machine(),
            processes=self.processes,
            refusal="it is busy with another run" if self._is_busy else None,
        )
        if self._is_busy:
            with trio.move_on_after(LAST_WORD_TIMEOUT):
                await pipe.send(greeting)
            return
        self._is_busy = True
        try:
            await pipe.send(greeting)
            failure = await self._take_order(pipe)
            with trio.move_on_after(LAST_WORD_TIMEOUT):
                await pipe.send(RunDone(failure))
        finally:
            self._is_busy = False

    async def _take_order(self, pipe: MessagePipe) -> str | None:
        """Do what the coordinator asks for; returns why that failed, if it did."""
        failure: str | None = None
        try:
            order: Order | None = None
            with trio.move_on_after(ASSIGNMENT_TIMEOUT):
                order = await pipe.order()
            match order:
                case Assignment():
                    check_assignment(order, self.permit, self.processes)
                    self.say(f"run {order.run} ({plain(order.file)}) begins")
                    await _play(pipe, WORKER, self._assignments(order))
                case SelfTestOrder():
                    self.say("a self-test begins")
                    await _play(pipe, SELF_TEST, [None])
                case None:
                    return "it was told nothing"
                case _:
                    raise BadMessage("it sent another order than an assignment")
        except* RelayError as errors:
            failure = plain(str(next(leaves(errors))))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            failure = "the coordinator has gone"
        except* OSError as errors:  # there are no processes or files left
            failure = f"it cannot start a process: {next(leaves(errors)).strerror}"
        self.say("it has ended" if failure is None else f"it ended: {failure}")
        return failure

    def _assignments(self, order: Assignment) -> list[Assignment]:
        """For each process: with what this agent permits, and with no way to files."""
        return [
            msgspec.structs.replace(
                order,
                process=process,
                folder=None,
                files=order.files or SentFiles(),
                permit=self.permit,
            )
            for process in range(self.processes)
        ]


async def _play(pipe: MessagePipe, module: str, orders: Sequence[Order | None]) -> None:
    """Run a process for each order; `PartEnded` if one of them or the coordinator ends early."""
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(open_process(module)) for _ in orders]
        await PlayedPart(pipe, children).play(orders)


@define(eq=False)
class PlayedPart:
    """The processes of one run, and the coordinator that they play for."""

    _coordinator: MessagePipe
    _children: Sequence[MessagePipe]
    _ready: int = 0
    """How many are."""

    async def play(self, orders: Sequence[Order | None]) -> None:
        """Pass on what both sides say, until all processes are done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_orders)
            async with trio.open_nursery() as playing:
                for number, order in enumerate(orders):
                    playing.start_soon(self._pass_on, number, order)
            nursery.cancel_scope.cancel()

    async def _follow_orders(self) -> None:
        end_of_making = trio.current_time() + ASSIGNMENT_TIMEOUT
        while True:
            is_ready = self._ready == len(self._children)
            # However often the coordinator speaks: a scenario may be huge.
            until = trio.current_time() + GONE_TIMEOUT if is_ready else end_of_making
            with trio.move_on_at(until) as waiting:
                order = await self._coordinator.order(MAX_LATER_ORDER_BYTES)
                if isinstance(order, ClockProbe):
                    reading = ClockReading(order.number, time.monotonic())
                    await self._coordinator.send(reading)
            if waiting.cancelled_caught:
                self._end_unless_ready_now(was_ready=is_ready)
                continue
            match order:
                case ClockProbe():
                    pass
                case StartSignal() | StopSignal():
                    for child in self._children:
                        with suppress(trio.BrokenResourceError):  # `_pass_on` notices
                            await child.send(order)
                case None:
                    raise PartEnded("the coordinator has gone")
                case _:
                    raise BadMessage("it sent an order that does not come here")

    def _end_unless_ready_now(self, *, was_ready: bool) -> None:
        if was_ready:
            raise PartEnded(f"the coordinator was silent for {GONE_TIMEOUT:g} s")
        if self._ready < len(self._children):
            raise PartEnded(f"its processes were not ready in {ASSIGNMENT_TIMEOUT:g} s")

    async def _pass_on(self, number: int, order: Order | None) -> None:
        child, coordinator = self._children[number], self._coordinator
        if order is not None:
            with suppress(trio.BrokenResourceError):
                await child.send(order)
        while True:
            match await child.statement():
                case GeneratorReady():
                    self._ready += 1
                    if self._ready == len(self._children):
                        await coordinator.send(GeneratorReady())
                case UpdateMessage(update=update):
                    await coordinator.send(UpdateMessage(update, number))
                case TrialMessage() as trial:
                    await coordinator.send(trial)
                case RunDone(failure=None):
                    return
                case RunDone(failure=str(failure)):
                    raise PartEnded(failure)
                case _:
                    raise PartEnded("a process of it has ended")
