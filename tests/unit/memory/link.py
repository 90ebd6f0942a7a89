"""Links in memory, with buffers as large as a socket's."""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field

from relay.transport.link import LOW_WATER_BYTES

SIZE = 64 * 1024


@define(eq=False)
class SocketBuffer:
    """The bytes on their way in one direction, no more than a kernel would hold."""

    capacity: int = SIZE
    content: bytearray = field(factory=bytearray)
    ended: bool = False
    broken: bool = False
    changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def put(self, data: bytes | bytearray | memoryview) -> int:
        if self.broken or self.ended:
            raise BrokenPipeError
        room = self.capacity - len(self.content)
        if room <= 0:
            raise BlockingIOError
        self.content += data[:room]
        self.changed.unpark_all()
        return min(room, len(data))

    def get(self, most: int) -> bytes:
        if self.broken:
            raise ConnectionResetError
        if not self.content and not self.ended:
            raise BlockingIOError
        data = bytes(self.content[:most])
        del self.content[:most]
        self.changed.unpark_all()
        return data

    async def wait(self, ready: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not (ready() or self.ended or self.broken):
            await self.changed.park()

    def end(self, *, broken: bool = False) -> None:
        self.ended, self.broken = True, self.broken or broken
        self.changed.unpark_all()


@define(eq=False)
class MemoryLink:
    """A `Link`: one end of two buffers."""

    incoming: SocketBuffer
    outgoing: SocketBuffer
    peer: str = "192.0.2.1:50000"
    knows_unsent: bool = True
    low_water: int = LOW_WATER_BYTES
    closed: bool = False
    was_reset: bool = False

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        if self.closed:
            raise OSError
        return self.outgoing.put(data)

    def send_if_low(self, data: bytes | bytearray | memoryview) -> int:
        unsent = self.unsent()
        if unsent is None or unsent >= self.low_water:
            raise BlockingIOError
        return self.send(data)

    def recv_into(self, buffer: memoryview) -> int:
        if self.closed:
            raise OSError
        data = self.incoming.get(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def unsent(self) -> int | None:
        if self.closed:
            raise OSError
        return len(self.outgoing.content) if self.knows_unsent else None

    async def wait_readable(self) -> None:
        await self.incoming.wait(lambda: self.closed or bool(self.incoming.content))
        if self.closed:
            raise trio.ClosedResourceError

    async def wait_writable(self) -> None:
        buffer = self.outgoing
        await buffer.wait(lambda: self.closed or len(buffer.content) < buffer.capacity)
        if self.closed:
            raise trio.ClosedResourceError

    def end_writing(self) -> None:
        self.outgoing.end()

    def close(self) -> None:
        self.closed = True
        self.outgoing.end()
        self.incoming.changed.unpark_all()

    def reset(self) -> None:
        self.was_reset = True
        self.outgoing.end(broken=True)
        self.close()


def link_pair(capacity: int = SIZE) -> tuple[MemoryLink, MemoryLink]:
    """The server's end and the client's."""
    up, down = SocketBuffer(SIZE), SocketBuffer(capacity)
    return MemoryLink(up, down), MemoryLink(down, up)
