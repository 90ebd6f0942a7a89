"""The end of a session on a live connection: one deadline, which every renewal moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum, auto

import trio
from attrs import define, field

from relay.model.identity import Identity, User

NOTICE_SECONDS = 60.0
"""Before the end, when the peer is told of it."""


class Due(Enum):
    """What has to be done as the end of a session draws near."""

    READ = auto()
    """Read the session again: it slides forward with its use, so what is known may be old."""
    NOTICE = auto()
    """Tell the peer when it ends."""
    END = auto()
    """It has ended."""


APPROACH = (
    (NOTICE_SECONDS + 5.0, Due.READ),
    (NOTICE_SECONDS, Due.NOTICE),
    (2.0, Due.READ),
    (0.0, Due.END),
)
"""Seconds before the end, and what is due then. The first reading is in time for the notice."""


@define(eq=False)
class Expiry:
    """The end of the session of one connection, by Trio's clock."""

    cut_short: bool = False
    """Whether the end was last moved to an earlier time, and not by the peer."""
    expires_at: datetime | None = None
    """As last known; None for what does not expire."""
    deadline: float = math.inf
    """The same moment by Trio's clock."""
    _within: trio.CancelScope | None = None
    _done: int = 0
    """How many steps of the approach to this end are done."""
    _moved: trio.Event = field(factory=trio.Event)

    def renew(self, identity: Identity, *, by_peer: bool) -> None:
        """Go by what is known of the session now; `by_peer` if the peer has just proved it."""
        expires_at = identity.expires_at if isinstance(identity, User) else None
        earlier = self.expires_at
        if by_peer:
            self.cut_short = False
        elif expires_at != earlier:
            self.cut_short = bool(earlier and expires_at and expires_at < earlier)
        if expires_at != earlier:
            self.expires_at = expires_at
            self.deadline = trio.current_time() + _remaining(identity)
            if self._within is not None:
                self._within.deadline = self.deadline
            self._done = 0
            self._moved.set()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Bound a block by the end of the session, wherever that moves meanwhile."""
        with trio.CancelScope(deadline=self.deadline) as self._within:
            yield
        self._within = None

    async def next(self) -> Due:
        """Wait for the next thing that is due."""
        while True:
            before, due = APPROACH[self._done]
            self._moved = trio.Event()
            with trio.move_on_at(self.deadline - before):
                await self._moved.wait()
            if self._moved.is_set():
                continue
            if trio.current_time() >= self.deadline:
                return Due.END
            self._done += 1
            return due


def _remaining(identity: Identity) -> float:
    """Seconds until an identity expires."""
    if not isinstance(identity, User):
        return math.inf
    if identity.remaining is not None:
        return identity.remaining
    return (identity.expires_at - datetime.now(UTC)).total_seconds()
