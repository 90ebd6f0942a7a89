"""Worker processes, as the coordinator sees them."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import trio
from attrs import define

from relay.errors import RelayError
from relay.load.run.target import PROCESS_STOP_TIMEOUT, stop
from relay.load.run.worker import Assignment, StartSignal, WorkerMessage, lines
from relay.process.working_directory import working_directory

MAX_OPEN_FILES = 65_536


class RunFailed(RelayError):
    """The run could not be completed."""


@define(eq=False)
class WorkerProcess:
    """A running worker process and its messages."""

    _process: trio.Process
    _lines: AsyncIterator[bytes]

    async def send(self, message: Assignment | StartSignal) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(msgspec.json.encode(message) + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise RunFailed("a worker has ended") from None

    async def ready(self) -> None:
        """Wait until it is ready to start; `RunFailed`."""
        message = await self._receive()
        if message is None or message.failure:
            raise RunFailed((message and message.failure) or "a worker has ended")

    async def play(self, signal: StartSignal) -> AsyncIterator[WorkerMessage]:
        """Start it and yield its messages until it is done; `RunFailed`."""
        await self.send(signal)
        while True:
            message = await self._receive()
            if message is None:
                raise RunFailed("a worker ended too early")
            if message.failure:
                raise RunFailed(message.failure)
            if message.done:
                return
            yield message

    async def stop(self) -> None:
        """Ask it to send its last update and to end."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    async def _receive(self) -> WorkerMessage | None:
        line = await anext(self._lines, None)
        try:
            return None if line is None else msgspec.json.decode(line, type=WorkerMessage)
        except msgspec.DecodeError:  # a script wrote to its descriptor
            raise RunFailed("a worker sent a line that cannot be read") from None


@asynccontextmanager
async def open_worker(assignment: Assignment) -> AsyncIterator[WorkerProcess]:
    """Start a worker process with its assignment; it ends with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "relay.load.run.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=working_directory(),
    )
    assert process.stdout is not None
    try:
        worker = WorkerProcess(process, lines(process.stdout))
        await worker.send(assignment)
        yield worker
    finally:
        with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
            await stop(process)


def raise_open_files() -> None:
    """Raise this process's and its children's limit of open files as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
