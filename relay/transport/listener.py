"""Accepts TCP connections as frame streams."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

import trio
from attrs import define, field

from relay.errors import ConfigError
from relay.logs.throttle import ThrottledWarning
from relay.transport.certificate import Certificate
from relay.transport.link import INHERITS_OPTIONS, SocketLink, set_options
from relay.transport.stream import FrameStream
from relay.transport.tls import TlsLink

BACKLOG = 4096
MISSING_ADDRESS_ERRNOS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
EXHAUSTED_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""A client is waiting, but there are no resources to accept it."""
FAILED_CONNECTION_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ENOSR", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
"""The connection failed before it was accepted, or a firewall refused it: see Linux' accept(2)."""
MAX_ACCEPTS_IN_A_ROW = 8
"""Connections that are accepted before Trio is asked to wait: after one there are often more. Those
whose request is there are let in at once, which takes as long as for the tasks that the round
limiter of the guard lets go on."""
ACCEPT_RETRY_INTERVAL = 0.1
"""Seconds between attempts while resources are exhausted."""

Accepted = tuple[socket.socket, Any]
"""A connected socket, and the address of the other side."""


@define(eq=False, repr=False)
class ListeningSocket:
    """Accepts sockets, and waits while there are no resources to accept one."""

    socket: socket.socket
    _accepts_in_a_row: int = field(init=False, default=0)
    _no_room: ThrottledWarning = field(
        init=False, factory=lambda: ThrottledWarning("no connection can be accepted for now")
    )

    async def accept_socket(self) -> Accepted:
        """Wait for a connection."""
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError
            if not self._accepts_in_a_row:
                await trio.lowlevel.wait_readable(self.socket)
            self._accepts_in_a_row = (self._accepts_in_a_row + 1) % MAX_ACCEPTS_IN_A_ROW
            try:
                return self.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                self._accepts_in_a_row = 0
                continue
            except OSError as problem:
                self._accepts_in_a_row = 0
                number = problem.errno
                if number not in EXHAUSTED_ERRNOS | FAILED_CONNECTION_ERRNOS:
                    raise
            if number in EXHAUSTED_ERRNOS:  # clients wait in the kernel
                self._no_room.warn(os.strerror(number))
                await trio.sleep(ACCEPT_RETRY_INTERVAL)

    def close(self) -> None:
        """Close at once."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


@define(eq=False, repr=False)
class TcpListener(ListeningSocket, trio.abc.Listener[FrameStream]):
    """One listening socket, for clients."""

    _stall_timeout: float
    _certificate: Certificate | None

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        scheme = "http" if self._certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def accept(self) -> FrameStream:
        accepted, peer = await self.accept_client()
        plain = SocketLink(accepted, peer, has_options=INHERITS_OPTIONS)
        certificate = self._certificate
        link = plain if certificate is None else TlsLink(plain, certificate.context)
        return FrameStream(link, self._stall_timeout)

    async def accept_client(self) -> tuple[socket.socket, str]:
        """Wait for a connection; returns it with its peer, as `HOST:PORT`."""
        accepted, address = await self.accept_socket()
        return accepted, f"{address[0]}:{address[1]}"


async def listen(
    addresses: Sequence[tuple[str, int]],
    *,
    stall_timeout: float,
    certificate: Certificate | None = None,
) -> list[TcpListener]:
    """Listen for clients on all pairs of host and port, as `listening_sockets` does."""
    sockets = await listening_sockets(addresses, "bind")
    return [TcpListener(each, stall_timeout, certificate) for each in sockets]


async def listening_sockets(
    addresses: Sequence[tuple[str, int]], setting: str
) -> list[socket.socket]:
    """Listen on all pairs of host and port; those with port 0 share the one the system picks.

    Addresses that this machine does not have, such as ::1 without IPv6, are skipped. Raises
    `ConfigError`, which names the setting, when an address is in use or forbidden, or when all were
    skipped.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    chosen = 0
    try:
        for host, port in addresses:
            try:
                sockets.append(await _bind(host, port or chosen))
            except OSError as problem:
                if problem.errno not in MISSING_ADDRESS_ERRNOS:
                    raise _explain(setting, host, port, problem) from None
                missing = missing or problem
            else:
                chosen = sockets[-1].getsockname()[1]
        if not sockets:
            assert missing is not None
            raise _explain(setting, *addresses[0], missing)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return sockets


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except UnicodeError:
        raise OSError(errno.EINVAL, "no host can have this name") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setblocking(False)  # noqa: FBT003 (positional only)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_options(bound)
        bound.bind(address)
        bound.listen(BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound


def _explain(setting: str, host: str, port: int, problem: OSError) -> ConfigError:
    if problem.errno == errno.EADDRINUSE:
        return ConfigError(f"{setting}: {host}:{port} is in use; choose another port")
    return ConfigError(f"{setting}: {host}:{port} cannot be used: {problem.strerror}")
