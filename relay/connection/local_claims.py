"""Who may produce a stream where there is only this process: its owner."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from relay.connection.context import Claimed
from relay.model.cluster import ClaimRequest


class StreamOwners(Protocol):
    """The owner of each stream: the first user who registered its id."""

    async def claim(self, stream_id: str, user_id: str, *, by_session: bool) -> str:
        """The owner of a stream, which becomes `user_id` if it has none; `StoreUnavailable`.

        `by_session`: whether the user came with a session of Better Auth."""


@frozen(eq=False, repr=False)
class LocalClaims:
    """Lets the owner of a stream produce it; the hub knows which connection was accepted later."""

    _owners: StreamOwners

    async def claim(self, request: ClaimRequest) -> Claimed:
        owner_id = await self._owners.claim(
            request.stream_id, request.user_id, by_session=request.by_session
        )
        return Claimed(owner_id, "new" if owner_id == request.user_id else "taken")

    def settle(self, stream_id: str) -> None:
        pass
