"""One subscription: a stream's frames on their way to one connection. Floor 2."""

from __future__ import annotations

import trio
from attrs import define, field

from relay.hub.frame import Frame
from relay.hub.peer import Peer
from relay.metrics import Metrics
from relay.model import Identity
from relay.transport.outlet import Outlet


@define(eq=False)
class Consumer:
    """Takes what is offered at the pace of its connection: `latest` skips to the newest frame.

    A `Source` of the connection's outlet. Frames that cannot be written at once wait in a memory
    channel for one; a newer frame takes the place of the one that waits.
    """

    stream_id: str
    identity: Identity
    wants_frames: bool
    wants_alerts: bool
    peer: Peer
    _outlet: Outlet
    _metrics: Metrics
    in_line: bool = False
    written: int = 0
    dropped: int = 0
    _put: trio.MemorySendChannel[Frame] = field(init=False)
    _get: trio.MemoryReceiveChannel[Frame] = field(init=False)
    _closed: bool = False

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(1)

    def offer(self, frame: Frame) -> None:
        """Write the frame if the connection is idle, else let it wait. Never waits, never
        raises."""
        if self._closed:
            return
        if not self.in_line and self._outlet.write_now(frame.json):
            self._count_written()
        else:
            self._let_wait(frame)

    def take(self) -> bytes | None:
        try:
            frame = self._get.receive_nowait()
        except trio.WouldBlock:
            return None
        self._count_written()
        return frame.json

    def waiting(self) -> bool:
        return self._get.statistics().current_buffer_used > 0

    def close(self) -> None:
        """Take no further frame; one that waits is dropped."""
        self._closed = True
        self._drop_waiting()

    def _let_wait(self, frame: Frame) -> None:
        self._drop_waiting()
        self._put.send_nowait(frame)
        self._outlet.line_up(self)

    def _drop_waiting(self) -> None:
        try:
            self._get.receive_nowait()
        except trio.WouldBlock:
            return
        self.dropped += 1
        self._metrics.frames_dropped += 1

    def _count_written(self) -> None:
        self.written += 1
        self._metrics.frames_written += 1
