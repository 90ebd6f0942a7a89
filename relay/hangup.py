"""SIGHUP: a certificate to read again, or a terminal that was closed. Floor 2."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import structlog
import trio

from relay.transport.certificate import Certificate

log = structlog.get_logger()


async def heed_hangup(
    certificate: Certificate | None, *, task_status: trio.TaskStatus[None]
) -> NoReturn:
    """Read the certificate again each time, and end as on SIGTERM once there is no terminal."""
    # Whoever closes the terminal means the end, but not who called relay with nohup.
    ends_with_it = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if ends_with_it and not _has_terminal():
                signal.raise_signal(signal.SIGTERM)
            elif certificate is None:
                # Whoever sends this to all services after a renewal must not end those without.
                log.info("nothing to read again: there is no certificate")
            else:
                certificate.reload()
    raise AssertionError("signals do not end")


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
