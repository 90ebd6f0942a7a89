"""Queues of frames for slow consumers: one bounded memory channel each."""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import define

from relay.concurrency.byte_queue import ByteQueue
from relay.hub.frames.frame import Frame

MAX_LOSSLESS_FRAMES = 4096
"""Frames that may wait for a lossless consumer, however small they are."""


class TooSlow(Exception):
    """The queue of a lossless consumer is full."""


class FrameQueue(Protocol):
    """A bounded queue with a policy. Nothing here waits."""

    @property
    def count(self) -> int:
        """Frames that wait."""

    @property
    def discardable(self) -> bool:
        """Whether nothing builds on the frame that waits."""

    def add(self, frame: Frame, size: int) -> Frame | None:
        """Add a frame; returns the frame that is dropped for it, which may be the frame itself."""

    def take(self) -> Frame | None:
        """Remove the next frame to deliver; None when the queue is empty."""

    @property
    def since(self) -> float:
        """When the frame that waits was accepted, or of several about the first; by Trio's
        clock."""


@define(eq=False)
class LatestQueue:
    """Holds one frame, the newest that a decoder can use."""

    count: int = 0
    since: float = 0.0
    discardable: bool = False
    _channel: tuple[trio.MemorySendChannel[Frame], trio.MemoryReceiveChannel[Frame]] | None = None
    """None before the first frame waits: most subscriptions never need it."""

    def add(self, frame: Frame, size: int) -> Frame | None:  # noqa: ARG002 (one frame)
        if self.count and frame.is_delta and not self.discardable:
            # It builds on the frame that waits, or on one behind it: that one must go first.
            return frame
        displaced = self.take()
        if self._channel is None:
            self._channel = trio.open_memory_channel[Frame](1)
        self._channel[0].send_nowait(frame)
        self.count, self.since = 1, frame.accepted_at
        self.discardable = frame.is_discardable
        return displaced

    def take(self) -> Frame | None:
        if self._channel is None or not self.count:
            return None
        self.count = 0
        return self._channel[1].receive_nowait()


@define(eq=False)
class LosslessQueue(ByteQueue[Frame]):
    """Holds all frames in order, up to a bound in bytes."""

    since: float = 0.0
    discardable: bool = False

    def add(self, frame: Frame, size: int) -> Frame | None:
        """Raises `TooSlow` when there is no room; an empty queue takes a frame of any size."""
        if not self.count:
            self.since = frame.accepted_at
        if not self.put(frame, size):
            raise TooSlow
        return None
