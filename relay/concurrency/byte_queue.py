"""A bounded queue for a peer that may be slow."""

from __future__ import annotations

from typing import Generic, TypeVar

import trio
from attrs import define, field

Item = TypeVar("Item")


@define(eq=False, repr=False)
class ByteQueue(Generic[Item]):
    """A first-in, first-out memory channel bounded in items and in bytes. Nothing here waits."""

    max_items: int
    max_bytes: int
    count: int = 0
    """Items that wait."""
    bytes: int = 0
    """The size of these together."""
    _put: trio.MemorySendChannel[tuple[Item, int]] = field(init=False)
    _get: trio.MemoryReceiveChannel[tuple[Item, int]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(self.max_items)

    def has_room_for(self, size: int) -> bool:
        """Whether an item of `size` bytes may be added. An empty queue takes any."""
        return not self.count or (
            self.count < self.max_items and self.bytes + size <= self.max_bytes
        )

    def put(self, item: Item, size: int) -> bool:
        """Add an item of `size` bytes; False when there is no room."""
        if not self.has_room_for(size):
            return False
        self._put.send_nowait((item, size))
        self.count += 1
        self.bytes += size
        return True

    def take(self) -> Item | None:
        """Remove the oldest item; None when the queue is empty."""
        if not self.count:
            return None
        item, size = self._get.receive_nowait()
        self.count -= 1
        self.bytes -= size
        return item
