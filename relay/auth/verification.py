"""Whose token it is: the ways to verify, in their order. Floor 2.

A token whose form belongs to one way is decided by that way alone; any other goes from way to way
until one knows it. A way that cannot tell ends the search: those behind it must not be asked about
a token that may well be known before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from attrs import define

from relay.auth.introspection import Introspection
from relay.auth.way import Claim, Way
from relay.metrics import Metrics
from relay.model import Identity
from relay.postgres.changes import Change


@define(eq=False)
class Verifier:
    """Tells whose token it is."""

    _metrics: Metrics
    _ways: Sequence[Way]
    """In the order of being asked."""
    _introspection: Introspection | None = None
    """The one way that remembers."""

    async def verify(self, token: str) -> Identity | None:
        """Whose token it is; None for one that is unknown or expired.

        `StoreUnavailable` when that cannot be told now. Waits as long as those do that are asked:
        the deadline is the caller's.
        """
        self._metrics.verifications += 1
        asked = trio.current_time()
        identity = await self._ask(token)
        self._metrics.verification_time.observe(trio.current_time() - asked)
        return identity

    def forget(self, change: Change) -> None:
        """Ask anew about the tokens of whom a change concerns, from now on."""
        if self._introspection is None or change.kind == "service":  # that is none of its tokens
            return
        self._introspection.forget(
            user_id=change.id if change.kind == "user" else None,
            session_id=change.id if change.kind == "session" else None,
        )

    async def _ask(self, token: str) -> Identity | None:
        for way in self._ways:
            claim = way.claim(token)
            if claim is Claim.NOT_MINE:
                continue
            identity = await way.verify(token)
            if identity is not None or claim is Claim.MINE:
                return identity
        return None
