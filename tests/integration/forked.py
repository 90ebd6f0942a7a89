"""Commands of relay as processes that are forked from one that has imported relay already.

The import is most of what the start of a relay costs, and the tests start hundreds. In tests of the
start itself each is `python -m relay` all the same, and with --all one in eight of the others.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import FileIO
from multiprocessing import connection, get_context
from pathlib import Path
from threading import Lock
from typing import Self

from relay.cli.main import main

PRELOADED = ["tests.integration.preloaded"]
UNFORKED = 8
everything = False
"""Set by --all: one in so many is not forked."""
_starts = itertools.count(1)


def may_fork() -> bool:
    """Whether to fork the next one; Apple's libraries do not bear it."""
    due = everything and next(_starts) % UNFORKED == 0
    return not due and sys.platform != "darwin"


class ForkedProcess:
    """As much of `subprocess.Popen` as tests need."""

    def __init__(
        self, arguments: Sequence[str], stderr: Path, folder: Path, environment: Mapping[str, str]
    ) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        ours, theirs = context.Pipe(duplex=False)
        with ours, theirs:
            self._process = context.Process(
                target=_run, args=(list(arguments), theirs, stderr, folder, dict(environment))
            )
            self._process.start()
            self.stdout = FileIO(os.dup(ours.fileno()))
        self._lock = Lock()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        with self._lock:  # of two threads that look at once, one would see no exit code
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("relay", timeout or 0.0)
        return code

    def communicate(self, timeout: float) -> str:
        """All that it writes to stdout until it ends."""
        deadline = time.monotonic() + timeout
        content = b""
        while select.select([self.stdout], [], [], deadline - time.monotonic())[0]:
            more = self.stdout.read(1 << 16)
            if not more:
                self.wait(max(0.0, deadline - time.monotonic()))
                return content.decode()
            content += more
        raise subprocess.TimeoutExpired("relay", timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self._process.join()
        self._process.close()


def _run(
    arguments: list[str],
    stdout: connection.Connection,
    stderr: Path,
    folder: Path,
    environment: dict[str, str],
) -> None:
    """Become what `python -m relay` is before it calls `main`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with stdout, stderr.open("ab") as errors, Path(os.devnull).open("rb") as nothing:
        for number, source in enumerate((nothing.fileno(), stdout.fileno(), errors.fileno())):
            os.dup2(source, number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["relay", *arguments]
    sys.exit(main(arguments))
