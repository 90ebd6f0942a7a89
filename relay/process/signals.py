"""Handles SIGHUP, which asks for a reload or tells that the terminal was closed, and SIGUSR2, which
asks to start workers anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

import structlog
import trio

log = structlog.get_logger()


async def handle_hangup(
    reload: Callable[[], object] | None, *, task_status: trio.TaskStatus[None]
) -> NoReturn:
    """Reload at each SIGHUP; end as on SIGTERM when the terminal is gone."""
    # Closing the terminal ends relay, but not under nohup.
    ends_with_it = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if ends_with_it and not _has_terminal():
                signal.raise_signal(signal.SIGTERM)
            elif reload is None:
                # A hook that signals every service after a renewal must not end one without TLS.
                log.info("nothing to read again: there is no certificate")
            else:
                reload()
    raise AssertionError("signals do not end")


async def survive_restart_requests(*, task_status: trio.TaskStatus[None]) -> None:
    """Do nothing on SIGUSR2: relay without workers must not be ended by it."""
    if signal.getsignal(signal.SIGUSR2) != signal.SIG_DFL:
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGUSR2) as signals:
        task_status.started()
        async for _ in signals:
            log.info("nothing to start anew: there are no workers")


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
