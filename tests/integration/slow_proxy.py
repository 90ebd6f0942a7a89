"""A TCP link to the relay that lets so many bytes a second through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define

from tests.integration.cut_proxy import GONE

TURN = 0.02
"""Seconds between two pieces."""


@define(eq=False)
class SlowProxy:
    port: int
    """Of the relay."""
    up: float
    """Bytes a second."""
    down: float
    url: str = ""
    opened: int = 0

    async def serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.opened += 1
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._forward, near, far, self.up, nursery)
            nursery.start_soon(self._forward, far, near, self.down, nursery)

    async def _forward(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        rate: float,
        nursery: trio.Nursery,
    ) -> None:
        with suppress(*GONE):
            while data := await source.receive_some(max(1, int(rate * TURN))):
                await sink.send_all(data)
                await trio.sleep(len(data) / rate)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def slow_link(
    relay_url: str, *, up: float = 1e9, down: float = 1e9
) -> AsyncIterator[SlowProxy]:
    proxy = SlowProxy(int(relay_url.rpartition(":")[2]), up, down)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await nursery.start(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
