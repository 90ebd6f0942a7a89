"""Acknowledges frames, so that buffers on the way hide few of them. Floor 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from relay.client.events import Event, Frame, Status
from relay.client.messages import encode
from relay.transport.dial import Closed

WINDOW = 8
"""Frames that may be under way to a viewer, unless it asks for another number. At 30 a second
nothing is lost as long as a frame's way and its acknowledgement's back take less than 8/30 s, which
is a slow mobile network; and what proxies and radios can hide is 8 frames, not megabytes."""


@define(eq=False)
class Receipts:
    """The frames of subscriptions with a window that have come and are to be acknowledged.

    By a task of its own: whoever reads must not wait until a large frame of ours is sent.
    """

    _send: Callable[[str], Awaitable[None]]
    _epochs: dict[str, int] = field(factory=dict)
    """Of each stream with a window: its life, as far as we were told."""
    _due: dict[str, tuple[int, int]] = field(factory=dict)
    """Of each stream that has some: the epoch and the `seq` of the last frame."""
    _came: trio.Event = field(factory=trio.Event)

    def begin(self, stream_id: str) -> None:
        """There is a window from now on."""
        self._epochs.setdefault(stream_id, 0)

    def end(self, stream_id: str) -> None:
        """There is none any more."""
        self._epochs.pop(stream_id, None)
        self._due.pop(stream_id, None)

    def take(self, event: Event) -> None:
        """Note what has come; in the order in which it came."""
        if isinstance(event, Frame) and event.stream_id in self._epochs:
            self._due[event.stream_id] = self._epochs[event.stream_id], event.seq
            self._came.set()
        elif isinstance(event, Status) and event.stream_id in self._epochs:
            # 0 is no life: what was sent before the stream ended may still come.
            self._epochs[event.stream_id] = event.epoch or self._epochs[event.stream_id]

    async def run(self) -> None:
        """Acknowledge until the connection has ended."""
        try:
            while True:
                await self._came.wait()
                self._came = trio.Event()
                due, self._due = self._due, {}
                for stream_id, (epoch, seq) in due.items():
                    await self._send(
                        encode("ack", stream_id=stream_id, seq=seq, epoch=epoch or None)
                    )
        except Closed:
            pass  # the reader tells
