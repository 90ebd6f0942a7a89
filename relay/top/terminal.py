"""The terminal while something live is on it, and as it was afterwards. Floor 6."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

LEAVE = b"qQ"


@contextmanager
def keys_one_by_one() -> Iterator[int | None]:
    """Let keys come without Enter and unseen; yields where to read them, None without a terminal.

    Ctrl-Z does nothing for as long: whoever stopped us would be left with our screen.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # there is none, or it is no terminal
        yield None
        return
    changed = termios.tcgetattr(descriptor)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    nothing = os.fpathconf(descriptor, "PC_VDISABLE")
    changed[6][termios.VSUSP] = bytes([nothing & 0xFF])
    termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


async def until_left(
    descriptor: int | None,
    resized: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Return when somebody presses q or Ctrl-C, or ends us; tell of each new size meanwhile."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGWINCH) as signals:
            if descriptor is not None:
                nursery.start_soon(_until_key, descriptor, nursery.cancel_scope)
            task_status.started()
            async for number in signals:
                if number != signal.SIGWINCH:
                    nursery.cancel_scope.cancel()
                    break
                resized()


async def _until_key(descriptor: int, leaving: trio.CancelScope) -> None:
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
            keys = os.read(descriptor, 256)
        except OSError:  # not every system can wait for a terminal: Ctrl-C is still there
            return
        if not keys or any(key in LEAVE for key in keys):
            leaving.cancel()
            return
