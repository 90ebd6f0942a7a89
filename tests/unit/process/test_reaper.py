"""The reaper: no child of it outlives the one that holds its pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from relay.process.reaper import reaper_command

LONG = 60.0
"""Seconds: none of this comes to an end by waiting."""
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"


@contextmanager
def reaper(program: str | list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A reaper whose child is a Python program or a command."""
    options.setdefault("stop", [(signal.SIGTERM, LONG)])
    command = [sys.executable, "-c", program] if isinstance(program, str) else program
    process = subprocess.Popen(
        reaper_command(command, **options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        env={},
        close_fds=False,
    )
    with process:
        try:
            yield process
        finally:
            stream(process.stdin).close()
            process.wait(LONG)


def stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def read_pid(process: subprocess.Popen[bytes]) -> int:
    return int(stream(process.stdout).readline())


def end(process: subprocess.Popen[bytes]) -> int:
    """Close the pipe; returns the exit status of the reaper."""
    stream(process.stdin).close()
    return process.wait(LONG)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_child_ends_when_the_pipe_does() -> None:
    with reaper(SLEEPS) as process:
        child = read_pid(process)
        assert lives(child)
        assert end(process) == -signal.SIGTERM & 0xFF
        assert not lives(child)


def test_a_child_that_does_not_heed_a_signal_gets_the_next() -> None:
    stop = [(signal.SIGTERM, 0.05), (signal.SIGINT, LONG)]
    # Python's own handler would be called only after a sleep that had not quite begun.
    program = f"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); {IGNORES_SIGTERM}"
    with reaper(program, stop=stop) as process:
        child = read_pid(process)
        assert end(process) == -signal.SIGINT & 0xFF
        assert not lives(child)


def test_after_the_last_step_it_is_killed() -> None:
    with reaper(IGNORES_SIGTERM, stop=[(signal.SIGTERM, 0.05)]) as process:
        child = read_pid(process)
        assert end(process) == -signal.SIGKILL & 0xFF
        assert not lives(child)


def test_it_ends_with_its_child_and_the_same_status() -> None:
    with reaper("raise SystemExit(7)") as process:
        assert process.wait(LONG) == 7


def test_signals_that_ask_for_an_end_are_not_for_it_and_its_child_does_not_ignore_them() -> None:
    with reaper(SLEEPS, report_pid=True) as process:
        child = read_pid(process)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert read_pid(process) == child
        assert lives(child)
        os.kill(child, signal.SIGTERM)
        assert process.wait(LONG) == -signal.SIGTERM & 0xFF


def test_the_process_id_comes_before_what_the_child_says() -> None:
    with reaper(SLEEPS, report_pid=True) as process:
        reported = read_pid(process)
        assert lives(reported)
        assert read_pid(process) == reported


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_folder_is_removed_when_the_pipe_has_ended(tmp_path: Path, *, by_itself: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").touch()
    with reaper("pass" if by_itself else SLEEPS, remove=str(folder)) as process:
        if by_itself:
            process.wait(LONG)
        else:
            read_pid(process)
            end(process)
        assert folder.exists() is by_itself


def test_the_child_inherits_one_descriptor() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    program = f"import os; os.write({writing}, b'inherited')"
    with reaper(program, pass_fd=writing) as process:
        os.close(writing)
        assert process.wait(LONG) == 0
    with open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor)
        assert pipe.read() == b"inherited"


@pytest.mark.skipif(os.geteuid() != 0, reason="platform: only root runs a child as another user")
def test_the_child_runs_as_another_user() -> None:
    with reaper(["/usr/bin/id", "-u"], user="65534:65534") as process:
        assert read_pid(process) == 65534
