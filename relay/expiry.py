"""The end of a session on a live connection: one deadline, which every renewal moves. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import trio
from attrs import define, field

from relay.model import Identity, User

NOTICE = 60.0
"""Seconds before the end at which the peer is told of it."""
LOOKS = (NOTICE + 5.0, 2.0)
"""Seconds before the end at which the session is read again: it slides forward with its use, so the
end that is known may be out of date. The first look is in time for the notice."""


@define(eq=False)
class Expiry:
    """When the session of one connection ends, by Trio's clock."""

    _look: Callable[[], Awaitable[object]]
    """Reads the session again, and calls `renew` if it has changed."""
    _announce: Callable[[datetime], object]
    """Tells the peer when the session ends; called once for each end that comes near."""
    cut_short: bool = False
    """Whether the end was last moved to an earlier time, and not by the peer."""
    _expires_at: datetime | None = None
    """As last known; None for what does not expire."""
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _moved: trio.Event = field(factory=trio.Event)

    def renew(self, identity: Identity, *, by_peer: bool) -> None:
        """Go by what is known of the session now; `by_peer` if the peer has just proved it."""
        expires_at = identity.expires_at if isinstance(identity, User) else None
        earlier = self._expires_at
        if by_peer:
            self.cut_short = False
        elif expires_at != earlier:
            self.cut_short = bool(earlier and expires_at and expires_at < earlier)
        if expires_at != earlier:
            self._expires_at = expires_at
            self._scope.deadline = trio.current_time() + _remaining(identity)
            self._moved.set()

    async def run(self) -> None:
        """Return when the session has expired."""
        with self._scope:
            while True:
                self._moved = trio.Event()
                await self._approach()
                await self._moved.wait()

    async def _approach(self) -> None:
        """Do what has to be done as the end draws near; returns early when it moves."""
        first_look, last_look = LOOKS
        if await self._comes_within(first_look):
            await self._look()
            if await self._comes_within(NOTICE) and self._expires_at is not None:
                self._announce(self._expires_at)
                if await self._comes_within(last_look):
                    await self._look()

    async def _comes_within(self, seconds: float) -> bool:
        """Wait until the end is so near; false when it moves before."""
        with trio.move_on_at(self._scope.deadline - seconds):
            await self._moved.wait()
        return not self._moved.is_set()


def _remaining(identity: Identity) -> float:
    """Seconds until an identity expires."""
    if not isinstance(identity, User):
        return math.inf
    if identity.remaining is not None:
        return identity.remaining
    return (identity.expires_at - datetime.now(UTC)).total_seconds()
