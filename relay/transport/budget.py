"""A bound on the bytes that all connections hold: of incomplete messages, or of unread replies."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field


class BudgetHolder(Protocol):
    """Holds bytes, such as those of an incomplete message."""

    reserved: int
    """Bytes; kept by the budget."""

    @property
    def party(self) -> str:
        """The party that holds them: a user, a service, or the address of a client that has not
        authenticated."""

    def evict(self) -> None:
        """Release all of them at once: others need the room."""


@define(eq=False, repr=False)
class _Party:
    """What one party holds."""

    reserved: int = 0
    holders: dict[BudgetHolder, None] = field(factory=dict)
    """The one that began first is the first."""


@define(eq=False, repr=False)
class Budget:
    """Reserves bytes as room is made for them. Above the limit, the party that holds most pays: its
    oldest holder is evicted."""

    limit: int
    """Bytes."""
    reserved: int = 0
    _parties: dict[str, _Party] = field(factory=dict, repr=False)

    def reserve(self, size: int, holder: BudgetHolder) -> None:
        """Reserve `size` bytes. This may evict the holder itself."""
        if not size:  # to evict who holds nothing would make no room, again and again
            return
        party = self._parties.get(holder.party)
        if party is None:
            party = self._parties[holder.party] = _Party()
        party.holders[holder] = None
        party.reserved += size
        holder.reserved += size
        self.reserved += size
        while self.reserved > self.limit:
            most = max(self._parties.values(), key=_reserved)
            next(iter(most.holders)).evict()

    def release(self, size: int, holder: BudgetHolder) -> None:
        if not holder.reserved:
            return
        party = self._parties[holder.party]
        party.reserved -= size
        holder.reserved -= size
        self.reserved -= size
        if not holder.reserved:
            del party.holders[holder]
            if not party.holders:
                del self._parties[holder.party]


def _reserved(party: _Party) -> int:
    return party.reserved
