"""A program on a terminal of its own, in the hands of a test."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import trio
from attrs import define, field

from tests.integration.relay_process import PATIENCE, PROJECT

# The terminal has to be the program's own, so that Ctrl-C and a new size reach it.
TAKE_IT = """if True:
    import fcntl, os, sys, termios
    os.setsid()
    fcntl.ioctl(2, termios.TIOCSCTTY, 0)
    os.execv(sys.argv[1], sys.argv[1:])
"""
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>78]")


SIZE = {"COLUMNS", "LINES"}


@define(eq=False)
class Terminal:
    """The side of it that people look at."""

    _controller: int
    _program_side: int
    process: subprocess.Popen[bytes]
    received: bytes = b""
    _before: list[Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._before = self.attributes

    @property
    def attributes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._program_side)

    @property
    def is_restored(self) -> bool:
        """Whether it is as the program found it, cursor and screen included."""
        shows = {b"\x1b[?1049": b"l", b"\x1b[?25": b"h"}
        return self.attributes == self._before and all(
            self.received[self.received.rfind(code) + len(code) :][:1] == last
            for code, last in shows.items()
            if code in self.received
        )

    def text(self, since: int = 0) -> str:
        """What was shown, each drawing from a new line on."""
        drawings = self.received[since:].replace(b"\x1b[H", b"\n")
        return ESCAPES.sub(b"", drawings).decode(errors="replace")

    async def until(self, words: str, since: int = 0) -> None:
        """Read until this was shown."""
        with trio.move_on_after(PATIENCE):
            while words not in self.text(since):
                if not await self._read():
                    break
        assert words in self.text(since), self.text(since)[-2000:]

    def type(self, keys: bytes) -> None:
        os.write(self._controller, keys)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def close(self) -> None:
        """Close it, as one closes a window."""
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, self._controller)
        os.close(nothing)

    async def end(self) -> int:
        """Read until the program ends; returns its exit code."""
        with trio.fail_after(PATIENCE):
            while self.process.poll() is None:
                with trio.move_on_after(0.05):
                    await self._read()
            with trio.move_on_after(0.2):
                while await self._read():
                    pass
        return self.process.returncode

    async def _read(self) -> bytes:
        await trio.lowlevel.wait_readable(self._controller)
        try:
            data = os.read(self._controller, 65_536)
        except OSError:  # nobody has the other side any more
            data = b""
        self.received += data
        return data


@contextmanager
def on_terminal(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    columns: int = 100,
    lines: int = 30,
    stdin: int | None = None,
) -> Iterator[Terminal]:
    """Run a command on a new terminal, perhaps with another stdin."""
    controller, program_side = pty.openpty()
    # Who runs the tests may have fixed a size, which would count more than the terminal's.
    inherited = {name: value for name, value in os.environ.items() if name not in SIZE}
    try:
        fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE_IT, *command],
            stdin=program_side if stdin is None else stdin,
            stdout=program_side,
            stderr=program_side,
            cwd=PROJECT,
            env={**inherited, "TERM": "xterm-256color", **environment},
        )
        try:
            yield Terminal(controller, program_side, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    finally:
        os.close(controller)
        os.close(program_side)
