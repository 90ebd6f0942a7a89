"""Verifies a token again if its user or session changed during the verification."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define, evolve

from relay.auth.methods.signed_cookie import unsigned
from relay.auth.registry import Registry
from relay.auth.verifier import Verifier
from relay.model.access.identity import Identity, User
from relay.model.access.token_digest import token_digest


@define(eq=False, repr=False)
class ConsistentVerifier:
    """Returns identities that are newer than every change known so far.

    A caller that enters the session watch before it waits for anything misses no later change.
    """

    _verifier: Verifier
    _complete: Callable[[Identity], Awaitable[Identity | None]]
    """Adds what the verifier does not know; None for a user who is banned."""
    _registry: Registry
    _wait_turn: Callable[[], Awaitable[object]]
    """Awaited before the last check, after which nothing may wait."""

    async def verify(self, token: str) -> Identity | None:
        """Verify a token, like `Verifier.verify`."""
        while True:
            before = self._registry.mark()
            identity = await self._verifier.verify(token)
            if isinstance(identity, User) and not identity.token_hash:
                identity = evolve(identity, token_hash=token_digest(unsigned(token)).hex())
            if identity is not None:
                identity = await self._complete(identity)
            await self._wait_turn()
            if identity is None or self._registry.still_holds(identity, before):
                return identity
