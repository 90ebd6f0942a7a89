"""Caps on connections: in total, per address, per user, and unauthenticated.

Every operation takes constant time; but to ask for room takes longer with each one that is coming.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal, Protocol

from attrs import define, field, frozen

from relay.metrics import Limit


class LimitedConnection(Protocol):
    """A connection, as its limits see it."""

    def crowded_out(self, limit: Limit) -> object:
        """End, because this limit was exceeded."""


@frozen
class Caps:
    """How many connections there may be at most."""

    connections: int
    per_address: int
    per_user: int
    unauthenticated: int
    stays: Literal["newest-wins", "oldest-wins"] = "newest-wins"
    """Which connections of a user stay when there are too many."""


@define(eq=False, repr=False)
class _ByAddress:
    """Connections grouped by address, and addresses by their number of connections."""

    _addresses: dict[LimitedConnection, str] = field(factory=dict)
    _connections: dict[str, dict[LimitedConnection, None]] = field(factory=dict)
    _by_number: dict[int, dict[str, None]] = field(factory=dict)
    _most: int = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, connection: LimitedConnection) -> bool:
        return connection in self._addresses

    def add(self, connection: LimitedConnection, address: str) -> None:
        self._addresses[connection] = address
        connections = self._connections.setdefault(address, {})
        connections[connection] = None
        self._recount(address, len(connections) - 1, len(connections))

    def discard(self, connection: LimitedConnection) -> None:
        address = self._addresses.pop(connection, None)
        if address is None:
            return
        connections = self._connections[address]
        del connections[connection]
        self._recount(address, len(connections) + 1, len(connections))
        if not connections:
            del self._connections[address]

    def oldest_of(self, address: str) -> LimitedConnection | None:
        return next(iter(self._connections.get(address, ())), None)

    def oldest_of_most(self) -> LimitedConnection | None:
        """The oldest connection of the address with the most connections."""
        if not self._most:
            return None
        return self.oldest_of(next(iter(self._by_number[self._most])))

    def _recount(self, address: str, before: int, after: int) -> None:
        if before:
            del self._by_number[before][address]
            if not self._by_number[before]:
                del self._by_number[before]
        if after:
            self._by_number.setdefault(after, {})[address] = None
        self._most = max(self._most, after)
        while self._most and self._most not in self._by_number:
            self._most -= 1


@define(eq=False, repr=False)
class ConnectionLimits:
    """The connections of this relay, counted; limited only if there are caps."""

    caps: Caps | None = None
    _unauthenticated: _ByAddress = field(factory=_ByAddress)
    """Accepted and not authenticated yet."""
    _admitted: dict[LimitedConnection, str] = field(factory=dict)
    """Admitted WebSockets, and their addresses."""
    _admitted_unauthenticated: _ByAddress = field(factory=_ByAddress)
    """Admitted and not authenticated yet."""
    _by_address: Counter[str] = field(factory=Counter)
    _by_user: dict[str, dict[LimitedConnection, None]] = field(factory=dict)
    _users: dict[LimitedConnection, str] = field(factory=dict)

    @property
    def unauthenticated(self) -> int:
        return len(self._unauthenticated)

    def enter(self, connection: LimitedConnection, address: str) -> None:
        """Count a connection that was just accepted.

        If too many are unauthenticated, the address with the most of them loses its oldest one.
        """
        self._unauthenticated.add(connection, address)
        if self.caps is not None and len(self._unauthenticated) > self.caps.unauthenticated:
            loser = self._unauthenticated.oldest_of_most()
            assert loser is not None
            self._unauthenticated.discard(loser)
            loser.crowded_out(Limit.UNAUTHENTICATED)

    def move(self, connection: LimitedConnection, address: str) -> None:
        """Change the address of a connection to the one that a proxy has told."""
        if connection in self._unauthenticated:
            self._unauthenticated.discard(connection)
            self._unauthenticated.add(connection, address)

    def admit(self, connection: LimitedConnection, address: str) -> Limit | None:
        """Admit a WebSocket, or return the limit that it would exceed.

        If there is no room, the oldest unauthenticated connection is ended to make some.
        """
        if self.caps is not None:
            if self._by_address[address] >= self.caps.per_address:
                limit = Limit.CONNECTIONS_OF_ADDRESS
                if not self._make_room(self._admitted_unauthenticated.oldest_of(address), limit):
                    return limit
            if len(self._admitted) >= self.caps.connections:
                limit = Limit.CONNECTIONS
                if not self._make_room(self._admitted_unauthenticated.oldest_of_most(), limit):
                    return limit
        self._admitted[connection] = address
        self._by_address[address] += 1
        if connection in self._unauthenticated:
            self._admitted_unauthenticated.add(connection, address)
        return None

    def has_room_for(
        self, address: str, user: str | None, coming: Collection[tuple[str, str | None]]
    ) -> bool:
        """Whether an authenticated WebSocket of this user, or of a service (None), could come
        without that another connection ends; `coming` has the addresses and users of those that may
        come and are not counted yet."""
        if self.caps is None:
            return True
        of_address = self._by_address[address] + sum(each == address for each, _ in coming)
        if (
            len(self._admitted) + len(coming) >= self.caps.connections
            or of_address >= self.caps.per_address
        ):
            return False
        if user is None:
            return True
        of_user = len(self._by_user.get(user, ())) + sum(each == user for _, each in coming)
        return of_user < self.caps.per_user

    def _make_room(self, loser: LimitedConnection | None, limit: Limit) -> bool:
        if loser is None:
            return False
        self._dismiss(loser)  # it counts as unauthenticated until it has left
        loser.crowded_out(limit)
        return True

    def authenticated(
        self, connection: LimitedConnection, user: str | None, *, gives_way: bool = False
    ) -> bool:
        """Count a connection as authenticated, as this user or as a service (None).

        False if the user has too many connections and this one must not stay; one that `gives_way`
        never makes another end.
        """
        self._unauthenticated.discard(connection)
        self._admitted_unauthenticated.discard(connection)
        if user is None or self.caps is None:
            return True
        own = self._by_user.setdefault(user, {})
        if len(own) >= self.caps.per_user:
            if gives_way or self.caps.stays == "oldest-wins":
                return False
            oldest = next(iter(own))
            self._forget_user(oldest)
            oldest.crowded_out(Limit.CONNECTIONS_OF_USER)
            own = self._by_user.setdefault(user, {})
        own[connection] = None
        self._users[connection] = user
        return True

    def leave(self, connection: LimitedConnection) -> None:
        self._unauthenticated.discard(connection)
        self._dismiss(connection)
        self._forget_user(connection)

    def _dismiss(self, connection: LimitedConnection) -> None:
        """Withdraw the admission of a WebSocket."""
        self._admitted_unauthenticated.discard(connection)
        address = self._admitted.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _forget_user(self, connection: LimitedConnection) -> None:
        user = self._users.pop(connection, None)
        if user is not None:
            del self._by_user[user][connection]
            if not self._by_user[user]:
                del self._by_user[user]
