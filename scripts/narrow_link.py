"""A proxy that makes a thin link of a connection on loopback; for scripts/figures.py.

In each direction there is a queue in front of a narrow place, and a way behind it that takes time.
The queue is what routers and radios have: what lies in it has been received as far as the sender's
kernel can see.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from attrs import define, field

from relay.client.handshake import LOST

PACKET_BYTES = 1448
"""What leaves the narrow place in one piece, as on an Ethernet."""
READ_BYTES = 64 * 1024
KERNEL_BYTES = 16 * 1024
"""What the proxy's kernel may receive beyond the queue."""

Connect = Callable[[], Awaitable[trio.SocketStream]]


@define(eq=False)
class Direction:
    """One direction of a link. Its rate may be changed at any time."""

    rate: float | None = None
    """Bytes a second that the narrow place takes; None: all at once."""
    queue: int = READ_BYTES
    """Bytes that may wait in front of it; beyond that nothing more is read."""
    delay: float = 0.0
    """Seconds from there to the other end."""


@define(eq=False)
class Link:
    """Both directions, as a client sees them."""

    down: Direction = field(factory=Direction)
    up: Direction = field(factory=Direction)


@define(eq=False)
class Carriage:
    """The bytes that are on their way in one direction of one connection."""

    source: trio.abc.ReceiveStream
    target: trio.abc.SendStream
    direction: Direction
    _waiting: int = 0
    """Bytes in front of the narrow place."""
    _left: trio.Event = field(factory=trio.Event)
    """Set when some of them have left."""

    async def run(self) -> None:
        """Carry until the source ends, or the target is gone."""
        # Their bounds are the queue, and what is on the way for the delay.
        queue_in, queue_out = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        way_in, way_out = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, queue_in)
            nursery.start_soon(self._squeeze, queue_out, way_in)
            await self._deliver(way_out)
            nursery.cancel_scope.cancel()

    async def _receive(self, queue: trio.MemorySendChannel[tuple[float, bytes]]) -> None:
        with queue, suppress(*LOST):
            while True:
                while (room := self.direction.queue - self._waiting) <= 0:
                    self._left = trio.Event()
                    await self._left.wait()
                data = bytes(await self.source.receive_some(min(room, READ_BYTES)))
                if not data:
                    return
                self._waiting += len(data)
                for start in range(0, len(data), PACKET_BYTES):
                    packet = data[start : start + PACKET_BYTES]
                    queue.send_nowait((trio.current_time(), packet))

    async def _squeeze(
        self,
        queue: trio.MemoryReceiveChannel[tuple[float, bytes]],
        way: trio.MemorySendChannel[tuple[float, bytes]],
    ) -> None:
        free = 0.0
        with way:
            async for came, packet in queue:
                # Not from now on: the next packet makes up for a late wake-up.
                free = max(free, came)
                if self.direction.rate is not None:
                    free += len(packet) / self.direction.rate
                    await trio.sleep_until(free)
                self._waiting -= len(packet)
                self._left.set()
                way.send_nowait((free + self.direction.delay, packet))

    async def _deliver(self, way: trio.MemoryReceiveChannel[tuple[float, bytes]]) -> None:
        with suppress(*LOST):
            async for due, packet in way:
                await trio.sleep_until(due)
                await self.target.send_all(packet)


async def serve_link(
    link: Link,
    connect: Connect,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on a port of loopback, which the task's status is, for connections by this link."""

    async def handle(near: trio.SocketStream) -> None:
        async with await connect() as far, trio.open_nursery() as nursery:

            async def carry_one_way(carriage: Carriage) -> None:
                await carriage.run()
                nursery.cancel_scope.cancel()  # who has lost one direction has lost both

            nursery.start_soon(carry_one_way, Carriage(near, far, link.up))
            nursery.start_soon(carry_one_way, Carriage(far, near, link.down))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    for listener in listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


async def connect_to(
    host: str, port: int, *, receive_buffer: int | None = KERNEL_BYTES
) -> trio.SocketStream:
    """Connect by a socket of the network namespace that this thread is in."""
    connecting = trio.socket.socket()
    if receive_buffer is not None:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await connecting.connect((host, port))
    return trio.SocketStream(connecting)
