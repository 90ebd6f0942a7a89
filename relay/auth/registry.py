"""The live connections by identity, and the latest changes of users, sessions and services.

A session may change while a token of it is being verified, when there is no connection yet to be
told. So the registry also remembers the latest changes: see `still_holds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from attrs import define, field
from cachetools import FIFOCache

from relay.model.access.change import EVERYTHING, Change
from relay.model.access.identity import Identity, User

MAX_CHANGES = 10_000
"""Remembered changes. Once older ones are forgotten, they count as changes of everyone."""


class WatchedConnection(Protocol):
    """An authenticated connection, as the session watch sees it."""

    @property
    def identity(self) -> Identity:
        """The identity that the connection has now."""

    def become(self, identity: Identity) -> object:
        """Continue with the new state of the same session or service."""

    def revoked(self) -> object:
        """End, because the session, its user or the service's token is gone."""


def changes_of(identity: Identity) -> tuple[Change, ...]:
    """The changes that concern an identity."""
    if isinstance(identity, User):
        if identity.link is not None:
            return Change("link", identity.link.link_id), Change("user", identity.user_id)
        of_user = Change("session", identity.session_id), Change("user", identity.user_id)
        return (*of_user, Change("token", identity.token_hash)) if identity.token_hash else of_user
    of_service = Change("service", identity.name)
    if identity.user_id is None:
        return (of_service,)
    return of_service, Change("user", identity.user_id)


@define(eq=False, repr=False)
class Registry:
    """The live connections, by the changes that concern them. It grows with connections only."""

    _by_change: dict[Change, dict[WatchedConnection, None]] = field(factory=dict)
    _everyone: dict[WatchedConnection, tuple[Change, ...]] = field(factory=dict)
    _count: int = 0
    """Changes noted so far."""
    _recent: FIFOCache[Change, int] = field(factory=lambda: FIFOCache(MAX_CHANGES), repr=False)
    """The number of the latest change of each kind and id, the earliest first."""
    _forgotten: int = 0
    """Changes up to this number are forgotten."""

    def __bool__(self) -> bool:
        return bool(self._everyone)

    def __contains__(self, live: WatchedConnection) -> bool:
        return live in self._everyone

    def enter(self, live: WatchedConnection) -> None:
        """Add a connection, or update it after its identity has changed."""
        if live in self._everyone:
            self.leave(live)
        changes = self._everyone[live] = changes_of(live.identity)
        for change in changes:
            self._by_change.setdefault(change, {})[live] = None

    def leave(self, live: WatchedConnection) -> None:
        for change in self._everyone.pop(live, ()):
            concerned = self._by_change[change]
            del concerned[live]
            if not concerned:
                del self._by_change[change]

    def concerned(self, change: Change) -> Iterable[WatchedConnection]:
        """The connections that a change concerns."""
        return self._everyone if change == EVERYTHING else self._by_change.get(change, ())

    def end_user(self, user_id: str) -> int:
        """End all connections of a user, as if every session had ended; returns how many."""
        return self.end(Change("user", user_id))

    def end(self, change: Change) -> int:
        """End the connections whose session or token is revoked by a change; returns how many.

        Services that produce in the name of a user stay: they have tokens of their own.
        """
        revoked = [
            live
            for live in self.concerned(change)
            if change.kind != "user" or isinstance(live.identity, User)
        ]
        for live in revoked:
            live.revoked()
        return len(revoked)

    def note(self, change: Change) -> None:
        """Remember a change."""
        self._count += 1
        if change == EVERYTHING:
            self._recent.clear()
            self._forgotten = self._count
            return
        self._recent.pop(change, None)
        if len(self._recent) == MAX_CHANGES:
            _, self._forgotten = self._recent.popitem()
        self._recent[change] = self._count

    def mark(self) -> int:
        """The current position in the order of changes, for `still_holds`."""
        return self._count

    def still_holds(self, identity: Identity, since: int) -> bool:
        """Whether an identity that was read after this mark has not changed since."""
        if since == self._count:
            return True  # nothing has
        if since < self._forgotten:
            return False
        return all(self._recent.get(each, 0) <= since for each in changes_of(identity))
