"""The way from other nodes to one node, which can be cut, shut, and narrowed."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define, field

GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
RESET = struct.pack("ii", 1, 0)
BUFFER_BYTES = 16 * 1024
"""Of the kernel on either side, as far as it goes along: what lies there gets old."""
TURN = 0.005
"""Seconds between two pieces, where it is narrow."""


@define(eq=False)
class LinkProxy:
    """Passes on what other nodes and a node say to each other."""

    port: int
    """Where other nodes come to."""
    target: int
    """The port of the node."""
    shut: bool = False
    """Whether nobody is let in."""
    rate: float | None = None
    """Bytes a second that go out of the node; None: as many as come."""
    opened: int = 0
    """Connections so far."""
    passed: int = 0
    """Bytes that went out of the node."""
    _cut: trio.Event = field(factory=trio.Event)

    def cut(self) -> None:
        """End all connections."""
        self._cut.set()
        self._cut = trio.Event()

    async def serve(self, near: trio.SocketStream) -> None:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if self.shut:
            await trio.aclose_forcefully(near)
            return
        self.opened += 1
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        far_socket = trio.socket.socket()
        if self.rate is not None:
            far_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        await far_socket.connect(("127.0.0.1", self.target))
        far = trio.SocketStream(far_socket)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, near, far, nursery)
            nursery.start_soon(self._forward_out, far, near, nursery)
            nursery.start_soon(self._end_when_cut, self._cut, nursery)

    async def _end_when_cut(self, cut: trio.Event, nursery: trio.Nursery) -> None:
        await cut.wait()
        nursery.cancel_scope.cancel()

    async def _forward(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with suppress(*GONE):
            async for data in source:
                await sink.send_all(data)
        nursery.cancel_scope.cancel()

    async def _forward_out(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        due = trio.current_time()
        with suppress(*GONE):
            while data := await source.receive_some(self._piece()):
                await sink.send_all(data)
                self.passed += len(data)
                if self.rate is not None:
                    due = max(due, trio.current_time() - TURN) + len(data) / self.rate
                    await trio.sleep_until(due)
        nursery.cancel_scope.cancel()

    def _piece(self) -> int:
        return 65536 if self.rate is None else max(1, int(self.rate * TURN))


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def open_link_proxy(port: int, target: int) -> AsyncIterator[LinkProxy]:
    proxy = LinkProxy(port, target)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
