"""Tells a service manager that relay listens. Floor 6.

systemd's protocol: one datagram to the socket that NOTIFY_SOCKET names. Where nothing sets it, as
everywhere but under a unit with Type=notify, nothing is told.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

VARIABLE = "NOTIFY_SOCKET"


def tell_service_manager(state: str = "READY=1") -> None:
    """Never fails and never waits: relay serves also where nobody listens to this."""
    path = os.environ.get(VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)  # noqa: FBT003 (it has no name for it)
        manager.sendto(state.encode(), address)
