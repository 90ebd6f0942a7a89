"""What must reach the peer and goes before video: replies, alerts, statuses. Floor 1."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.transport.outlet import Outlet

CAPACITY = 1024
"""Messages that may wait for a peer; with more it is too slow, and the connection ends."""


@define(eq=False)
class Mailbox:
    """A bounded queue of whole frames; a `Source` of the outlet, and the first in its line."""

    outlet: Outlet
    in_line: bool = False
    _put: trio.MemorySendChannel[bytes] = field(init=False)
    _get: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(CAPACITY)

    def post(self, frame: bytes) -> bool:
        """Send or queue a frame; False when the peer lets too many wait. Never waits."""
        if not self.in_line and self.outlet.write_now(frame):
            return True
        try:
            self._put.send_nowait(frame)
        except trio.WouldBlock:
            return False
        self.outlet.line_up(self, first=True)
        return True

    def take(self) -> bytes | None:
        try:
            return self._get.receive_nowait()
        except trio.WouldBlock:
            return None

    def waiting(self) -> bool:
        return self._get.statistics().current_buffer_used > 0
