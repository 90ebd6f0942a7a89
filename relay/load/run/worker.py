"""A worker: a process that plays one share of a scenario.

Its parent, the coordinator or an agent, gives it orders on stdin and reads what it says on stdout;
`wire.py` has the messages. When stdin ends, so does the worker.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import trio

from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.engine import StatsUpdate, play, prepare
from relay.load.actors.run_context import RunContext
from relay.load.run.agents.permit import allowance_for
from relay.load.run.wire import (
    Assignment,
    GeneratorReady,
    MessagePipe,
    RunDone,
    StartSignal,
    UpdateMessage,
)
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.raising import raised_scenario
from relay.load.scenario.schedule import Timeline


class StartedLate(RelayError):
    """A worker of an agent learned when to start only after that."""


async def main() -> None:
    """Do the assignment, then report that it is done or what went wrong."""
    stdin, stdout = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    os.dup2(2, 1)  # the output of a script must not mix with the messages
    pipe = MessagePipe(stdin, stdout)
    failure: str | None = None
    try:
        await work(pipe)
    except* RelayError as errors:
        failure = " ".join(map(str, leaves(errors)))
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the parent has gone
    with suppress(trio.BrokenResourceError):
        await pipe.send(RunDone(failure))


async def work(pipe: MessagePipe) -> None:
    """Play the share of an assignment until it is over, or a stop or the end of stdin."""
    assignment = await pipe.order()
    if not isinstance(assignment, Assignment):
        return
    share = assignment.shares[assignment.process]
    context = make_context(assignment)
    actors = await prepare(context, share)
    await pipe.send(GeneratorReady())
    signal = await pipe.order()
    if not isinstance(signal, StartSignal):
        return
    _start(context, signal)
    if assignment.permit is not None and context.now() > 0:
        raise StartedLate(f"it learned when to start {context.now():.2f} s after that")

    async def emit(update: StatsUpdate) -> None:
        await pipe.send(UpdateMessage(update, assignment.process))

    async with trio.open_nursery() as nursery:

        async def follow_orders() -> None:
            while isinstance(order := await pipe.order(), StartSignal):
                _start(context, order)
            nursery.cancel_scope.cancel()

        nursery.start_soon(follow_orders)
        await play(context, share, actors, emit)
        nursery.cancel_scope.cancel()


def make_context(assignment: Assignment) -> RunContext:
    """Read the scenario; `RelayError`, also if it is more than an agent permits."""
    folder = Path(assignment.folder or "")
    scenario = parse_scenario(assignment.source, assignment.file, folder)
    if assignment.raised is not None:
        scenario = raised_scenario(scenario, assignment.raised)
    timeline = Timeline(scenario)
    return RunContext(
        timeline,
        assignment.endpoint,
        assignment.run,
        files=assignment.files,
        allowance=allowance_for(assignment, timeline),
    )


def _start(context: RunContext, signal: StartSignal) -> None:
    """Let the run start, or have started, at this time of the machine's clock."""
    context.epoch = trio.current_time() + signal.start - time.monotonic()


if __name__ == "__main__":
    trio.run(main)
