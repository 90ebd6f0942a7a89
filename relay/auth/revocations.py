"""Revocations that the application tells of: sessions and tokens that have ended.

The connections concerned end at once. What named a session or a token is remembered for a while: a
token that is verified without its issuer, or whose answer is cached on the way, is refused all the
same. A user who was signed out may sign in again, so users are not remembered.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from attrs import define, field

from relay.auth.registry import Registry, changes_of
from relay.guard.rates import ExpiringKeys
from relay.model.access.change import Change
from relay.model.access.identity import Identity

REMEMBERED_SECONDS = 3600.0
MAX_REMEMBERED = 65_536

log = structlog.get_logger()


@define(eq=False, repr=False)
class Revocations:
    """Ends what was revoked, and refuses it when it comes back."""

    _registry: Registry
    _forget: Callable[[Change], object]
    """Drops what is cached about what a change concerns."""
    _remembered: ExpiringKeys = field(
        factory=lambda: ExpiringKeys(REMEMBERED_SECONDS, MAX_REMEMBERED)
    )

    def revoke(self, change: Change) -> int:
        """End the connections that a change concerns; returns how many."""
        self._forget(change)
        # What is being verified at this moment is verified again.
        self._registry.note(change)
        if change.kind != "user":
            self._remembered.add(_key(change))
        ended = self._registry.end(change)
        log.info("revoked", what=change.kind, connections=ended)
        return ended

    def cover(self, identity: Identity) -> bool:
        """Whether an identity was revoked lately."""
        return bool(self._remembered) and any(
            self._remembered.remaining(_key(change)) is not None for change in changes_of(identity)
        )


def _key(change: Change) -> str:
    return f"{change.kind}:{change.id}"
