"""A process that plays a share of a scenario. Floor 6.

It is started by the director, hears what to play on stdin and says what it sees on stdout, in lines
of JSON. When stdin ends, so does it.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio
from attrs import field, frozen

from relay.errors import RelayError
from relay.load.engine import Parts, Share, play, prepare
from relay.load.scenario import parse_scenario
from relay.load.schedule import Timeline
from relay.load.stage import Address, Stage
from relay.load.trust import Trust

LONGEST_LINE = 64 * 1024 * 1024


@frozen
class Order:
    """What a worker is told first; the tokens come this way so that no other process sees them."""

    source: str
    """The scenario, as TOML."""
    file: str
    folder: str
    run: str
    url: str
    tokens: tuple[str, ...] = field(repr=False)
    service_tokens: tuple[str, ...] = field(repr=False)
    trust: Trust
    worker: int
    of: int


@frozen
class Go:
    """When to start, by the machine's monotonic clock."""

    start: float


@frozen
class Said:
    """A line of a worker."""

    ready: bool = False
    parts: Parts | None = None
    failure: str | None = None
    done: bool = False


Say = Callable[[Said], Awaitable[None]]


async def lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """The lines of a stream; one that is too long ends it."""
    rest = bytearray()
    async for data in stream:
        rest += data
        *whole, last = rest.split(b"\n")
        rest = bytearray(last)
        for line in whole:
            yield bytes(line)
        if len(rest) > LONGEST_LINE:
            return


async def main() -> None:
    """Hear, play, say that it is done; or what went wrong."""
    stdin, stdout = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    os.dup2(2, 1)  # what a script prints is for people, and not for the director
    writing = trio.Lock()

    async def say(said: Said) -> None:
        async with writing:
            await stdout.send_all(msgspec.json.encode(said) + b"\n")

    failure: str | None = None
    try:
        await obey(lines(stdin), say)
    except* RelayError as errors:
        failure = " ".join(map(str, leaves(errors)))
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the director has gone: there is nobody to tell
    with suppress(trio.BrokenResourceError):
        await say(Said(done=True, failure=failure))


async def obey(heard: AsyncIterator[bytes], say: Say) -> None:
    """Play what the director orders until it is over or stdin ends."""
    ordered = await anext(heard, None)
    if ordered is None:
        return
    order = msgspec.json.decode(ordered, type=Order)
    scenario = parse_scenario(order.source, order.file, Path(order.folder))
    address = Address(order.url, order.tokens, order.service_tokens, order.trust)
    stage = Stage(Timeline(scenario), address, order.run)
    share = Share(worker=order.worker, of=order.of)
    actors = await prepare(stage, share)
    await say(Said(ready=True))
    word = await anext(heard, None)
    if word is None:
        return
    go = msgspec.json.decode(word, type=Go)
    stage.epoch = trio.current_time() + go.start - time.monotonic()

    async def emit(parts: Parts) -> None:
        await say(Said(parts=parts))

    async with trio.open_nursery() as nursery:

        async def stop_when_told() -> None:
            await anext(heard, None)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop_when_told)
        await play(stage, share, actors, emit)
        nursery.cancel_scope.cancel()


def leaves(errors: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """What went wrong, without the nurseries that it came through."""
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    trio.run(main)
