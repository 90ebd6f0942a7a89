"""Users whose sessions are outside the database: relay asks the application about them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from attrs import frozen

from relay.errors import ConfigError
from relay.model.access.identity import User
from relay.model.access.person import Person
from relay.model.suspicion import Suspicion
from relay.model.text import storable
from relay.postgres.tables.sessions.users import BetterAuthUsers


@frozen
class ApplicationUsers:
    """Stands where `BetterAuthSessions` does, and has no session."""

    users: BetterAuthUsers

    async def find(self, _tokens: Sequence[str]) -> dict[str, User]:
        return {}

    async def read(self, _session_ids: Sequence[str]) -> dict[str, User]:
        return {}

    async def suspicions(self) -> Sequence[Suspicion]:
        return []

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        """See `BetterAuthUsers.granted_to`."""
        return await self.users.granted_to(user_ids)

    async def deleted_among(self, user_ids: Sequence[str]) -> set[str]:
        """See `BetterAuthUsers.deleted_among`."""
        return await self.users.deleted_among(user_ids)

    async def people(self, user_ids: Sequence[str]) -> dict[str, Person]:
        """See `BetterAuthUsers.people`."""
        return await self.users.people(user_ids)

    async def find_user(self, name: str) -> str:
        """The id of the user with this id or e-mail address.

        Users may be rows that relay cannot see, so any id may be one. `ConfigError` for an address
        that is unknown.
        """
        try:
            return await self.users.find_user(name)
        except ConfigError:
            if "@" in name:
                raise
            return storable(name)

    async def create(self, _email: str, _ttl: timedelta) -> str:
        raise ConfigError("the application behind auth_session_url creates the sessions, not relay")
