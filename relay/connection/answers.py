"""Answers requests that have waited in the queue of their session."""

from __future__ import annotations

from attrs import define

from relay.connection.authentication import Authentication, Granted
from relay.connection.peer import Peer
from relay.connection.session.alert_requests import PageRequest, StoreRequest
from relay.connection.session.session import Session
from relay.protocol.messages import Auth, ClientMessage

Queued = ClientMessage | PageRequest
"""What a client sent, or a page that it was promised."""


@define(eq=False, repr=False)
class Answers:
    """Answers the requests of one session. The queue refers to it, not the other way round."""

    _peer: Peer
    _session: Session
    _authentication: Authentication

    async def answer(self, request: Queued) -> None:
        """Answer a request completely."""
        for_store: StoreRequest | None = None
        if isinstance(request, PageRequest):
            for_store = request
        elif isinstance(request, Auth):
            await self._renew(request)
        else:
            for_store = await self._session.handle(request)
        if for_store is not None:
            await self._session.answer_from_store(for_store)

    async def _renew(self, request: Auth) -> None:
        outcome = await self._authentication.answer(request)
        if isinstance(outcome, Granted):
            self._session.renew(outcome.identity, outcome.token)
            self._peer.tell(outcome.welcome)
