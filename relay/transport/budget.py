"""A bound on what all connections together hold half received. Floor 1."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field


class Holder(Protocol):
    """Who holds bytes that a message is not whole without."""

    borrowed: int
    """How many; kept by the budget."""

    def lose(self) -> None:
        """Give all of them back at once: others need the room."""


@define(eq=False)
class Budget:
    """So many bytes, lent as they arrive. When there are more, whoever holds most loses them."""

    limit: int
    lent: int = 0
    _holders: set[Holder] = field(factory=set, repr=False)

    def lend(self, size: int, holder: Holder) -> None:
        """Take so many bytes; it may be the holder itself that loses what it has."""
        holder.borrowed += size
        self.lent += size
        self._holders.add(holder)
        while self.lent > self.limit:
            max(self._holders, key=_borrowed).lose()

    def give_back(self, size: int, holder: Holder) -> None:
        holder.borrowed -= size
        self.lent -= size
        if not holder.borrowed:
            self._holders.discard(holder)


def _borrowed(holder: Holder) -> int:
    return holder.borrowed
