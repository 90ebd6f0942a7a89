"""A client on a link of limited rate, with the real connection code at the other end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from relay.client import ReconnectPolicy, RelayClient
from relay.client.relay_client import keep_client
from relay.client.websocket import WebSocket, open_websocket
from tests.unit.memory import ANN, SIZE, MemoryLink, MemoryRelay, link_pair

POLICY = ReconnectPolicy()
TURN = 0.1


@define(eq=False)
class SlowStream(trio.abc.Stream):
    """The client's end of a link that lets so many bytes a second through."""

    link: MemoryLink
    up: float
    down: float
    dead: bool = False
    closed: bool = False
    received: int = 0
    sent: int = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        data = memoryview(data)
        while data:
            await self._turn(min(TURN, len(data) / self.up))
            await self.link.wait_writable()
            count = self.link.send(data[: max(1, int(self.up * TURN))])
            self.sent += count
            data = data[count:]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = memoryview(bytearray(min(SIZE, max(1, int(self.down * TURN)))))
        await self.link.wait_readable()
        count = self.link.recv_into(buffer)
        self.received += count
        await self._turn(count / self.down)
        return bytes(buffer[:count])

    async def _turn(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if self.closed:
            raise trio.ClosedResourceError
        if self.dead:
            await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await self.link.wait_writable()

    async def aclose(self) -> None:
        self.closed = True
        if not self.dead:
            self.link.close()
        await trio.lowlevel.checkpoint()


@define(eq=False)
class SlowLink:
    """Where a client dials to; `streams` are its connections."""

    relay: MemoryRelay
    up: float = 1e9
    down: float = 1e9
    buffers: int = 64 * 1024
    """Bytes that the link holds on their way down."""
    streams: list[SlowStream] = field(factory=list)

    @asynccontextmanager
    async def dial(self, subprotocols: Sequence[str]) -> AsyncIterator[WebSocket]:
        server_end, client_end = link_pair(self.buffers)
        server_end.knows_unsent = False  # what lies in buffers beyond the kernel
        self.relay.accept(server_end)
        self.streams.append(SlowStream(client_end, self.up, self.down))
        target = "/streams/subscribe"
        async with open_websocket(self.streams[-1], "relay", target, subprotocols) as socket:
            yield socket

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RelayClient]:
        async with keep_client(self.dial, ANN, POLICY) as client:
            await client.ready()
            yield client
