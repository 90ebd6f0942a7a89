"""Processes that play or measure, as their parent sees them: the coordinator, or an agent."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from relay.load.run.targets.target import PROCESS_STOP_TIMEOUT, stop
from relay.load.run.wire import MessagePipe
from relay.process.working_directory import working_directory

MAX_OPEN_FILES = 65_536
WORKER, SELF_TEST = "relay.load.run.worker", "relay.load.selftest"
"""What such a process runs."""


@asynccontextmanager
async def open_process(module: str = WORKER) -> AsyncIterator[MessagePipe]:
    """Start a process that takes orders; it ends with the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd=working_directory(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield MessagePipe(process.stdout, process.stdin)
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
