"""What must reach the peer and goes before video: replies, alerts, statuses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import trio
from attrs import define, field

from relay.transport.budget import Budget
from relay.transport.outlet import Outlet

MAX_MAILBOX_MESSAGES = 1024
MAX_MAILBOX_BYTES = 4 << 20
"""Limits on what may wait for a peer; with more it is too slow."""
MAX_UPDATES = 32_768
"""Updates that may wait beside these, each of something else."""
FULL, HALF_FULL, QUARTER_FULL = 1, 2, 4
"""How much of the limits is taken: all, a half, a quarter."""


@define(eq=False, repr=False)
class Mailbox:
    """A bounded queue of whole frames; a `Source` of the outlet, and the first in its line.

    An update, such as the status of a stream, takes the place of the one before it that still
    waits, so there is at most one for each thing that it may be about. It is encoded when its turn
    comes, as one frame or several.
    """

    outlet: Outlet
    _budget: Budget
    """Bounds what waits in all mailboxes together."""
    _on_evict: Callable[[], object] | None
    """Called when its messages were thrown away, since others need the room."""
    in_line: bool = False
    _queue: OrderedDict[Hashable, bytes | Callable[[], bytes]] = field(factory=OrderedDict)
    """What waits; an update by what it is about, anything else by its number."""
    _messages: int = 0
    """Frames that wait, without updates."""
    party: str = "strangers"
    """Who pays for them; see `count_for`."""
    reserved: int = 0
    """The size of these together; kept by the budget."""
    _number: int = 0
    _one_taken: trio.Event | None = None

    def post(self, frame: bytes) -> bool:
        """Send or queue a frame; False when too much waits already, and when all that waits was
        thrown away for it. Never waits."""
        if not self.in_line and self.outlet.write_now(frame):
            return True
        if self._messages and self._holds(FULL, len(frame)):
            return False
        self._number += 1
        self._queue[self._number] = frame
        self._messages += 1
        self.outlet.line_up(self, first=True)
        self._budget.reserve(len(frame), self)
        return self._number in self._queue

    def post_update(self, about: tuple[str, ...], encode: Callable[[], bytes]) -> bool:
        """Send or queue an update, in place of one about the same that still waits; False when
        there are too many. Never waits."""
        if not self.in_line and self.outlet.write_now(encode()):
            return True
        # Behind everything that waits: an earlier place would put it before what came before it.
        self._queue.pop(about, None)
        if len(self._queue) - self._messages >= MAX_UPDATES:
            return False
        self._queue[about] = encode
        self.outlet.line_up(self, first=True)
        return True

    def drop_update(self, about: tuple[str, ...]) -> None:
        """Send no update about this, if one waits: it is of no use any more."""
        self._queue.pop(about, None)

    def take(self) -> bytes | None:
        if not self._queue:
            return None
        _, item = self._queue.popitem(last=False)
        if isinstance(item, bytes):
            self._messages -= 1
            self._budget.release(len(item), self)
        self._note_room()
        return item if isinstance(item, bytes) else item()

    def count_for(self, party: str) -> None:
        """Count what waits for a user or service from now on."""
        size = self.reserved
        self._budget.release(size, self)
        self.party = party
        self._budget.reserve(size, self)

    def evict(self) -> None:
        """Throw away what waits: others need the room."""
        self.clear()
        if self._on_evict is not None:
            self._on_evict()

    def close(self) -> None:
        """Throw away what waits, and know nobody any more."""
        self._on_evict = None
        self.clear()

    def clear(self) -> None:
        """Throw away what waits. Updates are not encoded for that: there may be many."""
        self._queue.clear()
        self._messages = 0
        self._budget.release(self.reserved, self)
        self._note_room()

    def waiting(self) -> bool:
        return bool(self._queue)

    async def wait_for_room(self, part: int = HALF_FULL) -> None:
        """Wait until less than a half, or a quarter, of what may wait does.

        A peer is read no further than to where its replies fit.
        """
        while self._holds(part):
            if self._one_taken is None:
                self._one_taken = trio.Event()
            await self._one_taken.wait()

    def _note_room(self) -> None:
        if self._one_taken is not None:
            self._one_taken.set()
            self._one_taken = None

    def _holds(self, part: int, more: int = 0) -> bool:
        """Whether the queue is full to a part, or would be above the limit in bytes with more."""
        return (
            self._messages * part >= MAX_MAILBOX_MESSAGES
            or (self.reserved + more) * part > MAX_MAILBOX_BYTES
        )
