"""The one way out of a connection. Floor 1.

The unsent rest of a begun frame (`_tail`) belongs to the outlet and not to a task: whoever writes
next finishes it first, so no cancellation can cut a frame, and no tail means a frame boundary.
trio-websocket's control frames and our data frames take turns under one first-in-first-out lock.

A frame is written at once, without waiting and without the lock, when the whole connection is idle:
the writer is parked, nothing is in line, there is no tail, and the kernel holds little that is
unsent. Otherwise its source gets in line, and the writer asks it for a frame as late as possible.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

import trio
from attrs import define, field

from relay.transport.link import UNSENT_LOW, Buffer, Link


class Source(Protocol):
    """A queue of frames that the writer empties, one frame at each of its turns."""

    in_line: bool
    """Kept by the outlet."""

    def take(self) -> Buffer | None:
        """The next frame to write, chosen now; None when there is none after all."""

    def waiting(self) -> bool:
        """Whether there is another one."""


@define(eq=False)
class Outlet:
    """The outgoing half of one connection."""

    link: Link
    stall_timeout: float
    """Seconds after which a peer that takes no byte at all is given up."""
    stalled: bool = False
    """Whether it was."""
    last_progress: float = field(factory=trio.current_time)
    """When the peer last made room for a frame that waited, by Trio's clock."""
    _lock: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    _tail: Buffer = b""
    _parked: bool = False
    """Whether the writer waits for something to do."""
    _closing: bool = False
    """No data frame may follow: a Close is out, or about to be, or the link is dead."""
    _closed: bool = False
    """Nothing may follow: a Close is out, or at least begun."""
    # Lists, for an empty deque takes ten times the memory and the lines are short.
    _first: list[Source] = field(factory=list)
    _turns: list[Source] = field(factory=list)
    _lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    @property
    def cut(self) -> bool:
        """Whether the peer has only a part of the last frame."""
        return bool(self._tail)

    @property
    def closing(self) -> bool:
        return self._closing

    def write_now(self, frame: Buffer) -> bool:
        """Write a frame if the connection is idle; False when it has to queue. Never waits or
        raises."""
        if not self._parked or self._tail:
            return False
        try:
            sent = self.link.send_if_low(frame)
        except BlockingIOError:
            return False
        except OSError:
            self.stop()
            return False
        if sent < len(frame):
            self._tail = memoryview(frame)[sent:]
            self._wake()
        return True

    def write_row_now(self, whole: Buffer, ends: Sequence[int]) -> int:
        """Write frames that stand one behind the other, as far as the connection takes them at
        once; how many it took, if only a part of the last."""
        if not self.write_now(whole):
            return 0
        sent = len(whole) - len(self._tail)
        begun = bisect_left(ends, sent) + 1
        self._tail = self._tail[: ends[begun - 1] - sent]
        return begun

    def line_up(self, source: Source, *, first: bool = False) -> None:
        """Let a source have its turn; `first` goes before all that are not."""
        if not source.in_line:
            source.in_line = True
            (self._first if first else self._turns).append(source)
            self._wake()

    def stop(self) -> None:
        """Write no further data frame; a begun one is still finished by whoever writes next."""
        self._closing = True
        self._wake()

    async def run(self) -> None:
        """The writer: ends when the outlet stops or the link breaks, which the reader notices."""
        try:
            while not self._closing:
                if self._first or self._turns or self._tail:
                    async with self._lock:
                        await self._serve_one()
                else:
                    self._parked = True
                    await self._lot.park()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.stop()
            self.link.reset()

    async def _serve_one(self) -> None:
        await self._flush()
        if not self._closing and self._may_be_above_low():
            await self._wait_writable()
        frame = None if self._closing else self._pick()
        if frame is not None:
            await self._write(frame)

    async def send(self, data: Buffer) -> None:
        """Write whole frames, or bytes before there are frames, in their turn.

        This and what is below raise `trio.ClosedResourceError` after a Close.
        """
        async with self._lock:
            await self._write(data)

    async def send_close(self, data: Buffer) -> None:
        """Write a Close frame; nothing follows it."""
        self.stop()
        async with self._lock:
            await self._write(data, closes=True)

    async def drain(self, source: Source, *last: bytes) -> None:
        """Write what is left in one source and then some last frames, when `run` has ended."""
        self.stop()
        async with self._lock:
            while (frame := source.take()) is not None:
                await self._write(frame)
            for frame in last:
                await self._write(frame)

    def _may_be_above_low(self) -> bool:
        """Whether to wait until the link is writable, which has the same low-water mark."""
        unsent = self.link.unsent()
        return unsent is None or unsent >= UNSENT_LOW

    def _wake(self) -> None:
        self._parked = False
        self._lot.unpark_all()

    def _pick(self) -> Buffer | None:
        line = self._first or self._turns
        if not line:
            return None
        source = line.pop(0)
        frame = source.take()
        source.in_line = source.waiting()
        if source.in_line:
            line.append(source)
        return frame

    async def _write(self, data: Buffer, *, closes: bool = False) -> None:
        await self._flush()
        if self._closed:
            raise trio.ClosedResourceError
        self._tail, self._closed = data, closes
        await self._flush()

    async def _flush(self) -> None:
        while self._tail:
            try:
                sent = self.link.send(self._tail)
            except BlockingIOError:
                await self._wait_writable()
            except OSError as problem:
                self.stop()
                raise trio.BrokenResourceError from problem
            else:
                self._tail = memoryview(self._tail)[sent:] if sent < len(self._tail) else b""

    async def _wait_writable(self) -> None:
        with trio.move_on_after(self.stall_timeout) as scope:
            await self.link.wait_writable()
        if scope.cancelled_caught:
            self.stalled = True
            self.stop()
            self.link.reset()
            raise trio.BrokenResourceError("the peer stopped reading")
        self.last_progress = trio.current_time()
