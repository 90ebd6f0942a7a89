"""A worker: a process that runs a share of a scenario.

The coordinator sends it an `Assignment` and a `StartSignal` on stdin. It answers with
`WorkerMessage`s on stdout. All are lines of JSON. When stdin ends, so does the worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio
from attrs import frozen

from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.endpoint import Endpoint
from relay.load.actors.engine import Share, StatsUpdate, play, prepare
from relay.load.actors.run_context import RunContext
from relay.load.scenario.scenario import parse_scenario
from relay.load.scenario.schedule import Timeline

MAX_WORKER_LINE_BYTES = 64 * 1024 * 1024


@frozen
class Assignment:
    """What a worker has to do. It goes through a pipe, so that no other process sees the tokens."""

    source: str
    """The scenario, as TOML."""
    file: str
    folder: str
    run: str
    endpoint: Endpoint
    share: Share


@frozen
class StartSignal:
    """The time to start, by the machine's monotonic clock."""

    start: float


@frozen
class WorkerMessage:
    """A line of a worker: it is ready, has an update, or has ended."""

    ready: bool = False
    update: StatsUpdate | None = None
    failure: str | None = None
    done: bool = False


Send = Callable[[WorkerMessage], Awaitable[None]]


async def lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, until its end or a line that is too long."""
    rest = bytearray()
    async for data in stream:
        rest += data
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in whole:
            yield bytes(line)
        if len(rest) > MAX_WORKER_LINE_BYTES:
            return


async def main() -> None:
    """Do the assignment, then report that it is done or what went wrong."""
    stdin, stdout = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    os.dup2(2, 1)  # the output of a script must not mix with the messages
    writing = trio.Lock()

    async def send(message: WorkerMessage) -> None:
        async with writing:
            await stdout.send_all(msgspec.json.encode(message) + b"\n")

    failure: str | None = None
    try:
        await work(lines(stdin), send)
    except* RelayError as errors:
        failure = " ".join(map(str, leaves(errors)))
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the coordinator has gone
    with suppress(trio.BrokenResourceError):
        await send(WorkerMessage(done=True, failure=failure))


async def work(received: AsyncIterator[bytes], send: Send) -> None:
    """Run the share of an assignment until it is over or stdin ends."""
    line = await anext(received, None)
    if line is None:
        return
    assignment = msgspec.json.decode(line, type=Assignment)
    scenario = parse_scenario(assignment.source, assignment.file, Path(assignment.folder))
    context = RunContext(Timeline(scenario), assignment.endpoint, assignment.run)
    actors = await prepare(context, assignment.share)
    await send(WorkerMessage(ready=True))
    line = await anext(received, None)
    if line is None:
        return
    start = msgspec.json.decode(line, type=StartSignal).start
    context.epoch = trio.current_time() + start - time.monotonic()

    async def emit(update: StatsUpdate) -> None:
        await send(WorkerMessage(update=update))

    async with trio.open_nursery() as nursery:

        async def stop_at_end_of_stdin() -> None:
            await anext(received, None)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_at_end_of_stdin)
        await play(context, assignment.share, actors, emit)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
