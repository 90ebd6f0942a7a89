"""The terminal under a live display, which is restored afterwards."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

QUIT_KEYS = b"qQ"


@contextmanager
def read_single_keys() -> Iterator[int | None]:
    """Read keys without Enter and without echo; yields their descriptor, None without a terminal.

    Ctrl-Z is off meanwhile: a stopped process would leave its display on the screen.
    """
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no standard input, or not a terminal
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


async def until_quit(
    descriptor: int | None,
    on_resize: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Return on q, Ctrl-C or SIGTERM; call `on_resize` when the terminal changes its size."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGWINCH) as signals:
            if descriptor is not None:
                nursery.start_soon(_until_key, descriptor, nursery.cancel_scope)
            task_status.started()
            async for number in signals:
                if number != signal.SIGWINCH:
                    nursery.cancel_scope.cancel()
                    break
                on_resize()


async def _until_key(descriptor: int, leaving: trio.CancelScope) -> None:
    while True:
        try:
            await trio.lowlevel.wait_readable(descriptor)
            keys = os.read(descriptor, 256)
        except OSError:  # some systems cannot wait for a terminal; Ctrl-C still works
            return
        if not keys or any(key in QUIT_KEYS for key in keys):
            leaving.cancel()
            return
