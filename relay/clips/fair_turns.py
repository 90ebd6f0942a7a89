"""Lets one of many users have its turn at a time, and nobody again while others wait for theirs.

The next turn goes to whoever had one longest ago. Few wait: where there are more, those give way
who had a turn last. So some that ask again and again do not keep out one that asks now and then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from relay.errors import RelayError

MAX_TURNS_KNOWN = 1000
"""Users of whom it is known when they had a turn; of all others it was long ago."""


class NoTurn(RelayError):
    """There was no turn for this user in time."""


@define(eq=False)
class _Place:
    """A user's place in the line."""

    user: str
    called: trio.Event = field(factory=trio.Event)
    """Set when it has its turn, or has to give way."""


@define(eq=False)
class FairTurns:
    """The turns of users."""

    _max_waiting: int
    _timeout: float
    """Seconds to wait for a turn."""
    _now: _Place | None = None
    """Who has the turn."""
    _waiting: dict[str, _Place] = field(factory=dict)
    """By user, in the order in which they came."""
    _last_turns: dict[str, int] = field(factory=dict)
    """The numbers of the last turns of users, in their order."""
    _turns: int = 0
    """How many there were."""

    @asynccontextmanager
    async def turn(self, user: str) -> AsyncIterator[None]:
        """Wait for the turn of a user, which lasts as long as the block; `NoTurn`."""
        place = self._enter(user)
        try:
            with trio.move_on_after(self._timeout):
                await place.called.wait()
            if self._now is not place:
                raise NoTurn
            yield
        finally:
            self._leave(place)

    def _enter(self, user: str) -> _Place:
        if user in self._waiting or (self._now is not None and self._now.user == user):
            raise NoTurn
        place = _Place(user)
        if self._now is None:
            self._call(place)
            return place
        if len(self._waiting) >= self._max_waiting:
            self._make_room_for(user)
        self._waiting[user] = place
        return place

    def _make_room_for(self, user: str) -> None:
        latest = max(self._waiting, key=self._last_turn)
        if self._last_turn(latest) <= self._last_turn(user):
            raise NoTurn
        self._waiting.pop(latest).called.set()

    def _leave(self, place: _Place) -> None:
        if self._waiting.get(place.user) is place:
            del self._waiting[place.user]
        if self._now is not place:
            return
        self._now = None
        if self._waiting:
            self._call(self._waiting.pop(min(self._waiting, key=self._last_turn)))

    def _call(self, place: _Place) -> None:
        self._now = place
        self._turns += 1
        self._last_turns.pop(place.user, None)
        self._last_turns[place.user] = self._turns
        if len(self._last_turns) > MAX_TURNS_KNOWN:
            del self._last_turns[next(iter(self._last_turns))]
        place.called.set()

    def _last_turn(self, user: str) -> int:
        """The number of its last turn; 0 if that was long ago, or never."""
        return self._last_turns.get(user, 0)
