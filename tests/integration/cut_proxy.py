"""A TCP link to the relay that dies where it is told to: a loopback proxy that counts bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio
from attrs import define, field

from tests.unit.cut_links import Cut, Way

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
RESET = struct.pack("ii", 1, 0)


@define(eq=False)
class CutProxy:
    port: int
    """Of the relay."""
    plan: Callable[[CutProxy], Cut | None]
    """What becomes of the connection that is opened now."""
    url: str = ""
    opened: int = 0
    cuts: int = 0

    async def serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self.port)
        cut = self.plan(self)
        self.opened += 1
        async with near, far, trio.open_nursery() as nursery:
            link = _Link(self, nursery, near, far, cut)
            nursery.start_soon(link.forward, "up", near, far)
            nursery.start_soon(link.forward, "down", far, near)


@define(eq=False)
class _Link:
    proxy: CutProxy
    nursery: trio.Nursery
    near: trio.SocketStream
    far: trio.SocketStream
    cut: Cut | None
    deaf: set[Way] = field(factory=set)
    passed: dict[Way, int] = field(factory=lambda: {"up": 0, "down": 0})

    async def forward(self, way: Way, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(*GONE):
            async for data in source:
                if way in self.deaf:
                    continue
                rest = self._rest(way)
                self.passed[way] += len(data)
                await sink.send_all(data[:rest])
                if len(data) >= rest:
                    self._die()
        # What went dead tells nobody, not even that somebody left.
        if way not in self.deaf:
            self.nursery.cancel_scope.cancel()

    def _rest(self, way: Way) -> int:
        cut = self.cut
        if cut is None or cut.way != way:
            return 1 << 30
        return cut.at - self.passed[way]

    def _die(self) -> None:
        assert self.cut is not None
        cut, self.cut = self.cut, None
        self.proxy.cuts += 1
        match cut.how:
            case "reset" | "end":
                if cut.how == "reset":
                    for stream in (self.near, self.far):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.nursery.cancel_scope.cancel()
            case "silence":
                self.deaf = {"up", "down"}
            case "deaf":
                self.deaf = {cut.way}


@asynccontextmanager
async def open_proxy(
    port: int, plan: Callable[[CutProxy], Cut | None] = lambda _proxy: None
) -> AsyncIterator[CutProxy]:
    proxy = CutProxy(port, plan)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
        proxy.url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel()
