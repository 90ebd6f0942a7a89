"""Runs the programs of Postgres under a reaper, so that they end with relay. A part of
`embedded.py`.

A program, its children and its reaper hold the lock `postgres.lock` together: when it is free, all
of them have ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import IO

import trio

from relay.postgres.embedded.account import Account
from relay.postgres.embedded.folder import Lock
from relay.process.reaper import StopStep, reaper_command


async def start_reaped(
    command: Sequence[str],
    *,
    stop: Sequence[StopStep],
    lock: Lock,
    account: Account | None,
    output: IO[bytes],
) -> trio.Process:
    """Start a program under a reaper; it gets the signals of `stop` when stdin is closed.

    The lock is for the program to keep: close it afterwards.
    """
    return await trio.lowlevel.open_process(
        reaper_command(
            command,
            stop=stop,
            pass_fd=lock.descriptor,
            user="" if account is None else str(account),
        ),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=[lock.descriptor],
        start_new_session=True,
        cwd="/",
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """The few variables that Postgres needs: no secrets, and none that configure Postgres."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


def error_line(said: bytes) -> str:
    """The last line that tells of an error, or the last line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    complaints = [line for line in lines if "FATAL" in line or "error" in line or "PANIC" in line]
    return (complaints or lines or ["it said nothing"])[-1]
