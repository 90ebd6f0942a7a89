"""Tells the service manager that relay listens, by systemd's notify protocol.

The message is one datagram to the socket that NOTIFY_SOCKET names. Only a unit with Type=notify
sets that variable; without it nothing is sent.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

SOCKET_VARIABLE = "NOTIFY_SOCKET"


def notify_service_manager(state: str = "READY=1") -> None:
    """Send a state. Never fails and never waits: relay also serves without a service manager."""
    path = os.environ.get(SOCKET_VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)  # noqa: FBT003 (it has no name for it)
        manager.sendto(state.encode(), address)
