"""One direction of a simulated link: a queue, a narrow place behind it, and the way from there.

The queue is the buffer of a router or a radio. To the sender's kernel, bytes in it have been
received, so the sender does not notice that the link is slow until the queue is full.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio
from attrs import define, field, frozen

PIECE_BYTES = 4096
"""What passes the narrow place in one piece; at 1 Mbit/s that takes 33 ms."""
PIECE_SECONDS = 0.005
"""On a fast link, what passes within this time is one piece, to save wake-ups."""
MAX_PIECES = 1024
"""Pieces that may be queued or on the way."""
MAX_BYTES_ON_THE_WAY = 4 * 1024 * 1024


@frozen
class Capacity:
    """What passes a narrow place."""

    rate: float | None = None
    """Bytes per second; None for any number at once."""
    until: float = math.inf
    """When the rate changes, by Trio's clock."""


@define(eq=False)
class Bottleneck:
    """Bytes that go one way. `run` must run in the meantime."""

    capacity: Callable[[float], Capacity]
    """At a time of Trio's clock."""
    depth: Callable[[], int]
    """Bytes that may wait in the queue."""
    delay: Callable[[], float]
    """Seconds from the narrow place to the other end; bytes do not overtake each other."""
    _queue: deque[tuple[float, bytes]] = field(factory=deque)
    """When they came, and the bytes."""
    _queued: int = 0
    """Bytes in the queue."""
    _way: deque[tuple[float, bytes]] = field(factory=deque)
    """When they are due at the other end, and the bytes."""
    _on_the_way: int = 0
    """Bytes."""
    _ended: bool = False
    """Whether nothing more will be put in."""
    _passed: bool = False
    """Whether nothing more will come out of the narrow place."""
    _broken: bool = False
    _put: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _has_room: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _has_come: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _taken: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def room(self) -> int:
        """Wait until the queue has room, and return it, in bytes; `trio.BrokenResourceError`."""
        while not self._broken:
            room = self.depth() - self._queued
            if room > 0 and len(self._queue) < MAX_PIECES:
                return room
            await self._has_room.park()
        raise trio.BrokenResourceError

    def put(self, data: bytes) -> None:
        """Put bytes into the queue; no more than `room`."""
        if data and not self._broken:
            self._queue.append((trio.current_time(), data))
            self._queued += len(data)
            self._put.unpark_all()

    def end(self) -> None:
        """Put nothing more in; what is in it still arrives."""
        self._ended = True
        self._put.unpark_all()

    def break_off(self) -> None:
        """Lose what is queued and on the way, and end."""
        self._queue.clear()
        self._way.clear()
        self._queued = self._on_the_way = 0
        self._ended = self._passed = self._broken = True
        for lot in (self._put, self._has_room, self._has_come, self._taken):
            lot.unpark_all()

    async def get(self) -> bytes:
        """Wait for the next bytes that arrive; none after the last."""
        while not self._way:
            if self._passed:
                await trio.lowlevel.checkpoint()
                return b""
            await self._has_come.park()
        await trio.sleep_until(self._way[0][0])
        if self._broken:  # meanwhile
            return b""
        _, data = self._way.popleft()
        self._on_the_way -= len(data)
        self._taken.unpark_all()
        return data

    async def run(self) -> None:
        """Let what is queued pass, until the end."""
        free = due = -math.inf
        while await self._is_waiting():
            came, chunk = self._queue.popleft()
            data = memoryview(chunk)
            # Not from now on: the next piece makes up for a late wake-up.
            free = max(free, came)
            while data:
                size = self._piece_size(free, len(data))
                self._queued -= size
                self._has_room.unpark_all()
                free = await self._pass_through(size, free)
                if self._broken:
                    return
                due = max(due, free + self.delay())
                self._way.append((due, bytes(data[:size])))
                data = data[size:]
                self._on_the_way += size
                self._has_come.unpark_all()
                while self._on_the_way >= MAX_BYTES_ON_THE_WAY or len(self._way) >= MAX_PIECES:
                    await self._taken.park()
                    free = max(free, trio.current_time())
        self._passed = True
        self._has_come.unpark_all()

    async def _is_waiting(self) -> bool:
        """Wait for bytes in the queue; false after the last."""
        while not self._queue:
            if self._ended:
                return False
            await self._put.park()
        return True

    def _piece_size(self, at: float, most: int) -> int:
        rate = self.capacity(at).rate
        return most if rate is None else min(most, max(PIECE_BYTES, int(rate * PIECE_SECONDS)))

    async def _pass_through(self, size: float, free: float) -> float:
        """Wait until a piece has passed the narrow place, free from `free` on; returns when."""
        while True:
            capacity = self.capacity(free)
            if capacity.rate is None:
                return free
            passed = free + size / capacity.rate if capacity.rate else math.inf
            await trio.sleep_until(min(passed, capacity.until))
            if passed <= capacity.until or self._broken:
                return passed
            size -= (capacity.until - free) * capacity.rate
            free = capacity.until
