"""Where frames wait for a slow connection: one memory channel for each consumer. Floor 2."""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import define, field

from relay.hub.frame import Frame

MOST_FRAMES = 4096
"""That a lossless consumer may have waiting, however small they are."""


class TooSlow(Exception):
    """More waits than may."""


class Waiting(Protocol):
    """A bounded queue with a policy. Nothing here waits."""

    count: int

    def put(self, frame: Frame, size: int) -> Frame | None:
        """Let a frame wait; returns the one that is not delivered therefore, maybe itself."""

    def take(self) -> Frame | None:
        """The next frame to deliver."""


@define(eq=False)
class Latest:
    """Holds one frame, the newest that a decoder can use."""

    count: int = 0
    _put: trio.MemorySendChannel[Frame] = field(init=False)
    _get: trio.MemoryReceiveChannel[Frame] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(1)

    def put(self, frame: Frame, size: int) -> Frame | None:  # noqa: ARG002 (one frame)
        if self.count and frame.is_delta:
            # It builds on the frame that waits, or on one behind it: that one must go first.
            return frame
        displaced = self.take()
        self._put.send_nowait(frame)
        self.count = 1
        return displaced

    def take(self) -> Frame | None:
        if not self.count:
            return None
        self.count = 0
        return self._get.receive_nowait()


@define(eq=False)
class Lossless:
    """Holds all frames in order, up to a bound in bytes."""

    _bound: int
    count: int = 0
    _bytes: int = 0
    _put: trio.MemorySendChannel[tuple[Frame, int]] = field(init=False)
    _get: trio.MemoryReceiveChannel[tuple[Frame, int]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(MOST_FRAMES)

    def put(self, frame: Frame, size: int) -> Frame | None:
        """Raises `TooSlow` when the frame does not fit; a single one always does."""
        if self.count and (self._bytes + size > self._bound or self.count >= MOST_FRAMES):
            raise TooSlow
        self._put.send_nowait((frame, size))
        self.count += 1
        self._bytes += size
        return None

    def take(self) -> Frame | None:
        if not self.count:
            return None
        frame, size = self._get.receive_nowait()
        self.count -= 1
        self._bytes -= size
        return frame
