"""Room for one incomplete frame, which grows as its bytes arrive. A part of `frame_parser.py`."""

from __future__ import annotations

import mmap

MIN_ROOM_BYTES = 4096
MAX_GROWN_BYTES = 1 << 20
"""At first there is room for `MIN_ROOM_BYTES`, or for a frame like the one before; then for twice
what has arrived. Behind `MAX_GROWN_BYTES` the rest of the frame gets memory that the system
provides page by page: growing further would copy too much."""


class FrameBuffer:
    """The bytes of a frame that have arrived, and room for more.

    What is announced and not sent takes no room.
    """

    __slots__ = ("_content", "missing", "room", "size")

    def __init__(self, data: memoryview, size: int, usual: int = 0) -> None:
        """Hold the first bytes of a frame of this size, where frames have a usual size."""
        self.size = size
        """Bytes of the frame."""
        self.missing: memoryview
        """The place for the next bytes."""
        self.room: int
        """Bytes of memory that it takes."""
        self._content: bytearray | mmap.mmap
        self._hold(data, min(usual, MAX_GROWN_BYTES))

    @property
    def arrived(self) -> int:
        """Bytes."""
        return len(self._content) - len(self.missing)

    def fill(self, count: int) -> memoryview | None:
        """Count the bytes that were put into `missing`; returns the frame if it is whole."""
        arrived = self.arrived + count
        if arrived == self.size:
            return memoryview(self._content)
        if count < len(self.missing):
            self.missing = self.missing[count:]
            self.room = max(self.room, arrived)
        else:
            self._hold(memoryview(self._content))
        return None

    def _hold(self, data: memoryview, least: int = MIN_ROOM_BYTES) -> None:
        arrived = len(data)
        if arrived < MAX_GROWN_BYTES or self.size <= 2 * arrived:
            self.room = min(self.size, max(MIN_ROOM_BYTES, least, 2 * arrived))
            self._content = bytearray(self.room)
        else:
            self.room = arrived
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._content = mmap.mmap(-1, self.size, flags=flags)
        self._content[:arrived] = data
        self.missing = memoryview(self._content)[arrived:]
