"""Grants and bans of users whose tokens come from an issuer.

A session is read together with its user's grants and ban. A JWT or an introspected token brings
neither, so they are looked up afterwards, with one query for all that wait at one moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import define, evolve, field

from relay.concurrency.batcher import Batcher
from relay.errors import StoreRejects
from relay.model.access.identity import Identity, User


class GrantTable(Protocol):
    """The grants of users, and who is banned."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """The streams of others that each user may watch, without banned users;
        `StoreUnavailable`."""


@define(eq=False, repr=False)
class ExternalUsers:
    """Completes the identities of users whose tokens come from an issuer."""

    _grants: GrantTable
    batcher: Batcher[str, frozenset[str] | None] = field(init=False)
    """Supervised."""

    def __attrs_post_init__(self) -> None:
        self.batcher = Batcher(self._look_up)

    async def complete(self, identity: Identity) -> Identity | None:
        """The identity with its grants; None if the user is banned, or has an id that the
        database cannot hold. `StoreUnavailable`."""
        if not isinstance(identity, User) or identity.source == "session":
            return identity
        try:
            granted = await self.batcher.ask(identity.user_id)
        except StoreRejects:  # the database cannot hold such an id
            return None
        return None if granted is None else evolve(identity, granted=granted)

    async def _look_up(self, user_ids: Sequence[str]) -> list[frozenset[str] | None]:
        found = await self._grants.granted_to([*set(user_ids)])
        return [found.get(user_id) for user_id in user_ids]
