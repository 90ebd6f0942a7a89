"""The interface of the methods to authenticate."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from relay.model.access.identity import Identity


class Match(Enum):
    """What the form of a token says about a method, before anything is looked up."""

    NO = auto()
    """The method is not tried."""
    MAYBE = auto()
    """The method is tried; if it does not know the token, the next one is."""
    YES = auto()
    """The method decides alone."""


class Method(Protocol):
    """One method to verify tokens."""

    def match(self, token: str) -> Match:
        """Whether the token is for this method, by its form alone."""

    async def verify(self, token: str) -> Identity | None:
        """The token's identity; None if it is invalid, `StoreUnavailable` if that cannot be told
        now."""
