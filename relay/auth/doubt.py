"""Verifies tokens again when what was read may have changed meanwhile. Floor 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from attrs import define

from relay.auth.registry import Registry
from relay.model import Identity


class Verifier(Protocol):
    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; `StoreUnavailable` when that cannot be told now."""


@define(eq=False)
class CertainVerifier:
    """Verifies a token, and again as long as somebody changed while it was verified.

    So what is true when `verify` returns was read after the last change that is known. Whoever
    enters the watch before anything else can happen hears of the next one.
    """

    _verifier: Verifier
    _complete: Callable[[Identity], Awaitable[Identity | None]]
    """Adds what a verifier does not know; None for who must not get in."""
    _registry: Registry
    _turn: Callable[[], Awaitable[object]]
    """Waited for before it is seen whether the answer still holds: nothing may wait after that."""

    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; None for one that is unknown or expired. `StoreUnavailable`."""
        while True:
            before = self._registry.mark()
            identity = await self._verifier.verify(token)
            if identity is not None:
                identity = await self._complete(identity)
            await self._turn()
            if identity is None or self._registry.still_holds(identity, before):
                return identity
