"""What somebody may do here whom an issuer vouches for. Floor 2.

A session is read with its grants and its user's ban. A JWT or an introspected token brings neither,
so they are looked up afterwards, all that wait at one moment with one query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import define, evolve, field

from relay.batching import Batcher
from relay.model import Identity, User


class Users(Protocol):
    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """What each user may watch of others' streams, without the users that are banned."""


@define(eq=False)
class Vouched:
    """Completes identities that do not come from a session's row."""

    _users: Users
    service: Batcher[str, frozenset[str] | None] = field(init=False)
    """Runs under the supervisor."""

    def __attrs_post_init__(self) -> None:
        self.service = Batcher(self._look_up)

    async def complete(self, identity: Identity) -> Identity | None:
        """The identity with its grants; None for a user who is banned. `StoreUnavailable`."""
        if not isinstance(identity, User) or identity.source == "session":
            return identity
        granted = await self.service.ask(identity.user_id)
        return None if granted is None else evolve(identity, granted=granted)

    async def _look_up(self, user_ids: Sequence[str]) -> list[frozenset[str] | None]:
        found = await self._users.granted_to([*set(user_ids)])
        return [found.get(user_id) for user_id in user_ids]
