"""What must reach the peer and goes before video: replies, alerts, statuses. Floor 1."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.transport.outlet import Outlet

CAPACITY = 1024
MOST_BYTES = 4 << 20
"""Messages, and their bytes, that may wait for a peer; with more it is too slow."""


@define(eq=False)
class Mailbox:
    """A bounded queue of whole frames; a `Source` of the outlet, and the first in its line."""

    outlet: Outlet
    in_line: bool = False
    _count: int = 0
    _bytes: int = 0
    _put: trio.MemorySendChannel[bytes] = field(init=False)
    _get: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(CAPACITY)

    def post(self, frame: bytes) -> bool:
        """Send or queue a frame; False when the peer lets too many wait. Never waits."""
        if not self.in_line and self.outlet.write_now(frame):
            return True
        if self._count == CAPACITY or (self._count and self._bytes + len(frame) > MOST_BYTES):
            return False
        self._put.send_nowait(frame)
        self._count += 1
        self._bytes += len(frame)
        self.outlet.line_up(self, first=True)
        return True

    def take(self) -> bytes | None:
        if not self._count:
            return None
        frame = self._get.receive_nowait()
        self._count -= 1
        self._bytes -= len(frame)
        return frame

    def clear(self) -> None:
        """Throw away what waits."""
        while self.take() is not None:
            pass

    def waiting(self) -> bool:
        return self._count > 0
