"""Connections that another process accepted and handed over.

`relay/workers/` sends the sockets; here they become streams.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable

import trio
from attrs import define, field

from relay.concurrency.wakeup import Wakeup
from relay.transport.acceptance import Acceptance
from relay.transport.certificate import Certificate
from relay.transport.link import INHERITS_OPTIONS, SocketLink
from relay.transport.stream import FrameStream, ignore
from relay.transport.tls import TlsLink


def trio_time(monotonic: float) -> float:
    """A moment of `time.monotonic()`, which all processes of a machine share, by Trio's clock; one
    that seems to lie in the future is now."""
    return trio.current_time() - max(0.0, time.monotonic() - monotonic)


@define(eq=False, repr=False)
class HandedListener(trio.abc.Listener[FrameStream]):
    """Gives streams of sockets that were accepted elsewhere."""

    _stall_timeout: float
    _certificate: Certificate | None = None
    _on_taken: Callable[[int], object] = ignore
    """Called with the number of a connection when it is about to be served."""
    _waiting: deque[tuple[socket.socket, str, Acceptance]] = field(factory=deque)
    """The sender bounds it: it sends few more than were taken."""
    _more: Wakeup = field(factory=Wakeup)
    _closed: bool = False

    def put(self, accepted: socket.socket, peer: str, acceptance: Acceptance) -> None:
        """Have a socket served; `peer` is `HOST:PORT`."""
        if self._closed:
            accepted.close()
            acceptance.left()
            return
        self._waiting.append((accepted, peer, acceptance))
        self._more.set()

    async def accept(self) -> FrameStream:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._closed:
                raise trio.ClosedResourceError
            await self._more.wait()
        accepted, peer, acceptance = self._waiting.popleft()
        self._on_taken(acceptance.number)
        plain = SocketLink(accepted, peer, has_options=INHERITS_OPTIONS)
        certificate = self._certificate
        link = plain if certificate is None else TlsLink(plain, certificate.context)
        return FrameStream(link, self._stall_timeout, acceptance=acceptance)

    def close(self) -> None:
        """Close, with the sockets that nobody has taken."""
        self._closed = True
        while self._waiting:
            accepted, _, acceptance = self._waiting.popleft()
            accepted.close()
            acceptance.left()
        self._more.set()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
