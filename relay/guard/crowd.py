"""How many connections there are: in all, of an address, of a user, not authenticated. Floor 2.

Everything here takes the same time however many there are.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, Protocol

from attrs import define, field, frozen

from relay.metrics import Limit


class Member(Protocol):
    """A connection, as the crowd sees it."""

    def crowded_out(self, limit: Limit) -> object:
        """There are too many: end."""


@frozen
class Caps:
    """The most that there may be."""

    connections: int
    per_address: int
    per_user: int
    unauthenticated: int
    stays: Literal["newest-wins", "oldest-wins"] = "newest-wins"
    """Of a user with too many connections."""


@define(eq=False)
class _Strangers:
    """Connections by address, and addresses by how many they have."""

    _addresses: dict[Member, str] = field(factory=dict)
    _members: dict[str, dict[Member, None]] = field(factory=dict)
    _by_number: dict[int, dict[str, None]] = field(factory=dict)
    _most: int = 0

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, member: Member) -> bool:
        return member in self._addresses

    def add(self, member: Member, address: str) -> None:
        self._addresses[member] = address
        members = self._members.setdefault(address, {})
        members[member] = None
        self._recount(address, len(members) - 1, len(members))

    def discard(self, member: Member) -> None:
        address = self._addresses.pop(member, None)
        if address is None:
            return
        members = self._members[address]
        del members[member]
        self._recount(address, len(members) + 1, len(members))
        if not members:
            del self._members[address]

    def oldest_of(self, address: str) -> Member | None:
        return next(iter(self._members.get(address, ())), None)

    def oldest_of_most(self) -> Member | None:
        """The oldest of an address that none has more of."""
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


@define(eq=False)
class Crowd:
    """All connections of this relay; without caps it only counts."""

    caps: Caps | None = None
    _strangers: _Strangers = field(factory=_Strangers)
    """Those that are not authenticated yet."""
    _admitted: dict[Member, str] = field(factory=dict)
    """Those that were let through the door, and their addresses."""
    _waiting: _Strangers = field(factory=_Strangers)
    """Those of them that are not authenticated yet."""
    _by_address: Counter[str] = field(factory=Counter)
    _by_user: dict[str, dict[Member, None]] = field(factory=dict)
    _users: dict[Member, str] = field(factory=dict)

    @property
    def unauthenticated(self) -> int:
        return len(self._strangers)

    def enter(self, member: Member, address: str) -> None:
        """Take in a connection that was just accepted.

        When too many are not authenticated, the address with most of them loses its oldest.
        """
        self._strangers.add(member, address)
        if self.caps is not None and len(self._strangers) > self.caps.unauthenticated:
            loser = self._strangers.oldest_of_most()
            assert loser is not None
            self._strangers.discard(loser)
            loser.crowded_out(Limit.UNAUTHENTICATED)

    def move(self, member: Member, address: str) -> None:
        """A proxy told the address of a connection."""
        if member in self._strangers:
            self._strangers.discard(member)
            self._strangers.add(member, address)

    def admit(self, member: Member, address: str) -> Limit | None:
        """Let a WebSocket through, or say what there is too much of.

        Who is not authenticated keeps no place from a newcomer: the oldest of them makes room.
        """
        if self.caps is not None:
            if self._by_address[address] >= self.caps.per_address:
                limit = Limit.CONNECTIONS_OF_ADDRESS
                if not self._make_room(self._waiting.oldest_of(address), limit):
                    return limit
            if len(self._admitted) >= self.caps.connections:
                limit = Limit.CONNECTIONS
                if not self._make_room(self._waiting.oldest_of_most(), limit):
                    return limit
        self._admitted[member] = address
        self._by_address[address] += 1
        if member in self._strangers:
            self._waiting.add(member, address)
        return None

    def _make_room(self, loser: Member | None, limit: Limit) -> bool:
        if loser is None:
            return False
        self._dismiss(loser)  # it stays a stranger until it has gone
        loser.crowded_out(limit)
        return True

    def know(self, member: Member, user: str | None) -> bool:
        """A connection is authenticated, as this user or as no user; False when there are too many
        of the user and this one is not to stay."""
        self._strangers.discard(member)
        self._waiting.discard(member)
        if user is None or self.caps is None:
            return True
        own = self._by_user.setdefault(user, {})
        if len(own) >= self.caps.per_user:
            if self.caps.stays == "oldest-wins":
                return False
            oldest = next(iter(own))
            self._forget_user(oldest)
            oldest.crowded_out(Limit.CONNECTIONS_OF_USER)
            own = self._by_user.setdefault(user, {})
        own[member] = None
        self._users[member] = user
        return True

    def leave(self, member: Member) -> None:
        self._strangers.discard(member)
        self._dismiss(member)
        self._forget_user(member)

    def _dismiss(self, member: Member) -> None:
        """Take back a place behind the door."""
        self._waiting.discard(member)
        address = self._admitted.pop(member, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _forget_user(self, member: Member) -> None:
        user = self._users.pop(member, None)
        if user is not None:
            del self._by_user[user][member]
            if not self._by_user[user]:
                del self._by_user[user]
