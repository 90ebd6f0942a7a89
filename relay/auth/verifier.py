"""Verifies tokens by several methods, in order.

If the form of a token says that it is for one method, that method decides alone. Other tokens go
from method to method until one knows them. A method that is unavailable ends the search, because
the methods after it must not see tokens that may belong to those before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio
from attrs import define

from relay.auth.methods.method import Match, Method
from relay.metrics import Metrics
from relay.model.access.change import Change
from relay.model.access.identity import Identity


class Verifier(Protocol):
    """Verifies tokens."""

    async def verify(self, token: str) -> Identity | None:
        """The token's identity; None if it is unknown or expired, `StoreUnavailable` if that cannot
        be told now."""


class Cache(Protocol):
    """A method that caches answers about tokens."""

    def forget(self, *, user_id: str | None, session_id: str | None) -> object:
        """Drop the answers about this user or this session; without either, all answers."""


@define(eq=False, repr=False)
class MethodVerifier:
    """Verifies tokens by the methods that the settings ask for."""

    _metrics: Metrics
    _methods: Sequence[Method]
    """In the order in which they are tried."""
    _caches: Sequence[Cache] = ()
    """Of the methods that cache answers."""

    async def verify(self, token: str) -> Identity | None:
        """Verify a token, for as long as the methods take: the caller sets a deadline."""
        self._metrics.verifications += 1
        began = trio.current_time()
        identity = await self._try_methods(token)
        self._metrics.verification_time.observe(trio.current_time() - began)
        return identity

    def forget(self, change: Change) -> None:
        """Drop cached answers about the users and sessions that a change concerns."""
        if change.kind in {"service", "token", "link"}:  # no answer is about a service
            return
        for cache in self._caches:
            cache.forget(
                user_id=change.id if change.kind == "user" else None,
                session_id=change.id if change.kind == "session" else None,
            )

    async def _try_methods(self, token: str) -> Identity | None:
        for method in self._methods:
            match = method.match(token)
            if match is Match.NO:
                continue
            identity = await method.verify(token)
            if identity is not None or match is Match.YES:
                return identity
        return None
