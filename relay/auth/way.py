"""What a way to verify a token is. Floor 2."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from relay.model import Identity


class Claim(Enum):
    """What the form of a token says to a way, before anything is asked."""

    NOT_MINE = auto()
    PERHAPS = auto()
    """This way looks; if it knows the token not, the next one does."""
    MINE = auto()
    """This way decides, and no other is asked."""


class Way(Protocol):
    """One way to tell whose token it is."""

    def claim(self, token: str) -> Claim:
        """By the form alone."""

    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; None when it is a wrong one, `StoreUnavailable` when that cannot be
        told now."""
