"""The end of a session on a live connection: one deadline, which every renewal moves."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import Enum, auto

import trio
from attrs import define

from relay.model.access.identity import Identity, User

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


@define(eq=False, repr=False)
class Expiry:
    """The end of the session of one connection, by Trio's clock, and what is due before. No I/O."""

    cut_short: bool = False
    """Whether the end was last moved to an earlier time, and not by the peer."""
    expires_at: datetime | None = None
    """As last known; None for what does not expire."""
    deadline: float = math.inf
    """The same moment by Trio's clock."""
    _done: int = 0
    """How many steps of the approach to this end are done."""
    _reading: bool = False
    """Whether the session is being read again. Meanwhile nothing is due but the end."""

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
            self._done = 0

    @property
    def next_at(self) -> float:
        """When the next thing is due."""
        return self.deadline - (0.0 if self._reading else APPROACH[self._done][0])

    def next(self) -> Due:
        """Return what is due now; `READ` has to be followed by `has_read`."""
        if trio.current_time() >= self.deadline:
            return Due.END
        due = APPROACH[self._done][1]
        self._done += 1
        self._reading = due is Due.READ
        return due

    def has_read(self) -> None:
        """Go on, with what `renew` was told meanwhile or without."""
        self._reading = False


def _remaining(identity: Identity) -> float:
    """Seconds until an identity expires."""
    if not isinstance(identity, User):
        return math.inf
    if identity.remaining is not None:
        return identity.remaining
    return (identity.expires_at - datetime.now(UTC)).total_seconds()
