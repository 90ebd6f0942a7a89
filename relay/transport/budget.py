"""A bound on what all connections together hold half received. Floor 1."""

from __future__ import annotations

from attrs import define


@define(eq=False)
class Budget:
    """So many bytes, lent and given back."""

    limit: int
    lent: int = 0

    def lend(self, size: int) -> bool:
        """Take so many bytes; False, and nothing taken, when they are not there."""
        if self.lent + size > self.limit:
            return False
        self.lent += size
        return True

    def give_back(self, size: int) -> None:
        self.lent -= size
