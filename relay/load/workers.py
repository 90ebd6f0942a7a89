"""The worker processes, as the director sees them. Floor 6."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio
from attrs import define

from relay.errors import RelayError
from relay.load.target import STOP_SECONDS, stop
from relay.load.worker import Go, Order, Said, lines

OPEN_FILES = 65_536


class RunFailed(RelayError):
    """A run that could not be brought to its end."""


@define(eq=False)
class Worker:
    """A worker process as the director sees it."""

    _process: trio.Process
    _said: AsyncIterator[bytes]

    async def tell(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(message) + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise RunFailed("a worker has ended") from None

    async def ready(self) -> None:
        said = await self._next()
        if said is None or said.failure:
            raise RunFailed(said.failure if said and said.failure else "a worker has ended")

    async def play(self, go: Go) -> AsyncIterator[Said]:
        """Give the word; then all that it says, until it is done."""
        await self.tell(go)
        while True:
            said = await self._next()
            if said is None:
                raise RunFailed("a worker has ended before its time")
            if said.failure:
                raise RunFailed(said.failure)
            if said.done:
                return
            yield said

    async def stop(self) -> None:
        """Let it hand in what it has, and end."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    async def _next(self) -> Said | None:
        line = await anext(self._said, None)
        try:
            return None if line is None else msgspec.json.decode(line, type=Said)
        except msgspec.DecodeError:  # a script wrote where it should not
            raise RunFailed("a worker says what cannot be read") from None


@asynccontextmanager
async def open_worker(order: Order) -> AsyncIterator[Worker]:
    """A worker that has its order; it ends with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "relay.load.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=Path.cwd(),
    )
    assert process.stdout is not None
    try:
        worker = Worker(process, lines(process.stdout))
        await worker.tell(order)
        yield worker
    finally:
        with trio.move_on_after(2 * STOP_SECONDS, shield=True):
            await stop(process)


def raise_open_files() -> None:
    """Let this process and its children have as many connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
