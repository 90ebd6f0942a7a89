"""Who is connected, and what has changed about them lately. Floor 2.

A notification that somebody's session has changed may come while a verification of that session is
under way, and nobody is there yet to be told. So the registry also keeps what changed, for as long
as a verification may take: see `still_holds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from attrs import define, field, frozen

from relay.model import Identity, User
from relay.postgres.changes import EVERYTHING, Change

MOST_CHANGES = 10_000
"""That are remembered; what is older counts as a change of everybody."""


class Live(Protocol):
    """An authenticated connection, as the watch sees it."""

    @property
    def identity(self) -> Identity:
        """What is known of it."""

    def become(self, identity: Identity) -> object:
        """Go on with what the store says now of the same session or service."""

    def revoked(self) -> object:
        """The session, its user or the service's token is no more: end."""


@frozen
class Mark:
    """A moment in the order of changes."""

    number: int


def changes_of(identity: Identity) -> tuple[Change, ...]:
    """The changes that concern somebody."""
    if isinstance(identity, User):
        return Change("session", identity.session_id), Change("user", identity.user_id)
    return (Change("service", identity.name),)


@define(eq=False)
class Registry:
    """The live connections, by what may change about them. It grows with connections only."""

    _by_change: dict[Change, dict[Live, None]] = field(factory=dict)
    _everyone: dict[Live, tuple[Change, ...]] = field(factory=dict)
    _count: int = 0
    _recent: dict[Change, int] = field(factory=dict)
    """When each last changed, the earliest first."""
    _forgotten: int = 0
    """Of what changed up to then, nothing is remembered."""

    def __bool__(self) -> bool:
        return bool(self._everyone)

    def __contains__(self, live: Live) -> bool:
        return live in self._everyone

    def enter(self, live: Live) -> None:
        """Begin to watch a connection, or go on with its other identity."""
        self.leave(live)
        changes = self._everyone[live] = changes_of(live.identity)
        for change in changes:
            self._by_change.setdefault(change, {})[live] = None

    def leave(self, live: Live) -> None:
        for change in self._everyone.pop(live, ()):
            concerned = self._by_change[change]
            del concerned[live]
            if not concerned:
                del self._by_change[change]

    def concerned(self, change: Change) -> Iterable[Live]:
        """The connections that a change is about."""
        return self._everyone if change == EVERYTHING else self._by_change.get(change, ())

    def note(self, change: Change) -> None:
        """Remember that something has changed now."""
        self._count += 1
        if change == EVERYTHING:
            self._recent.clear()
            self._forgotten = self._count
            return
        self._recent.pop(change, None)
        self._recent[change] = self._count
        if len(self._recent) > MOST_CHANGES:
            earliest = next(iter(self._recent))
            self._forgotten = self._recent.pop(earliest)

    def mark(self) -> Mark:
        """This moment, for `still_holds`."""
        return Mark(self._count)

    def still_holds(self, identity: Identity, since: Mark) -> bool:
        """Whether nothing is known to have changed about somebody who was read since then."""
        if since.number < self._forgotten:
            return False
        return all(self._recent.get(each, 0) <= since.number for each in changes_of(identity))
