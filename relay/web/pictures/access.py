"""Who asks for pictures, and whether they may: with a token, or with a link."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol

import trio
from attrs import define, field, frozen
from starlette.requests import Request

from relay.auth.login import Login
from relay.connection.context import Watch
from relay.errors import StoreUnavailable
from relay.metrics import Limit
from relay.model.access.identity import User
from relay.model.access.link import LinkPurpose, PictureLink
from relay.protocol.messages import ErrorCode
from relay.web.api import Api, ApiError, store_unavailable, token_of
from relay.web.pictures.reader import PictureReader, reader_of

WRONG_LINK = (
    "This link is not valid: it has expired, was revoked, or is for another stream or another use"
)
KEEP_INTERVAL, PLACE_TIMEOUT = 15.0, 2.0
"""Seconds between two times that a reader is counted on, and for saying that it has left."""
BOTH = "Send a token or a link, not both"


class LinkPlaces(Protocol):
    """Counts the readers of links on all relays; `StoreUnavailable`."""

    async def enter(self, link: PictureLink) -> str | None:
        """Count a reader; returns its id, or None if there are as many as may be."""

    async def keep(self, link: PictureLink, reader_id: str) -> object:
        """Go on counting it; else it is forgotten after a while."""

    async def leave(self, reader_id: str) -> object:
        """Count it no more."""


@frozen
class Visitor:
    """A reader that was let in."""

    reader: PictureReader
    link: PictureLink | None = None

    @property
    def by_link(self) -> bool:
        """Whether it came with a link."""
        return self.link is not None

    @property
    def user_id(self) -> str | None:
        """The user for whom it counts."""
        identity = self.reader.identity
        return identity.user_id if isinstance(identity, User) else None


@define(eq=False)
class Access:
    """Lets readers in."""

    _api: Api
    _watch: Watch
    _links: Login
    """Verifies the capabilities of links."""
    _places: LinkPlaces
    _readers: Counter[str] = field(factory=Counter)
    """Those who have an answer here, by link."""

    async def admit(
        self, request: Request, stream_id: str, purpose: LinkPurpose, capability: str | None
    ) -> Visitor:
        """The reader behind a request; `ApiError`. Call `visiting` before waiting for anything."""
        if capability is None:
            identity = await self._api.authenticate(request, looks=True)
            return Visitor(reader_of(request.state.connection, self._watch, identity))
        if token_of(request):
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, BOTH)
        maker = await self._api.identify_by_link(request, self._links, capability, WRONG_LINK)
        link = maker.link
        if link is None or (link.stream_id, link.purpose) != (stream_id, purpose):
            raise ApiError(401, ErrorCode.AUTH_FAILED, WRONG_LINK)
        return Visitor(reader_of(request.state.connection, self._watch, maker), link)

    @contextmanager
    def visiting(self, visitor: Visitor) -> Iterator[PictureReader]:
        """Count a reader, and let it be told what changes, within the block; `ApiError` if a link
        has too many."""
        link = visitor.link
        if link is None:
            with visitor.reader.watched():
                yield visitor.reader
            return
        if self._readers[link.link_id] >= link.readers:
            raise self._too_many_readers(link)
        self._readers[link.link_id] += 1
        try:
            with visitor.reader.watched():
                yield visitor.reader
        finally:
            self._readers[link.link_id] -= 1
            if not self._readers[link.link_id]:
                del self._readers[link.link_id]

    @asynccontextmanager
    async def placed(self, visitor: Visitor) -> AsyncIterator[str | None]:
        """Count a reader with a link among those of all relays within the block; `ApiError`. Gives
        the id of its place, for `keep`."""
        link = visitor.link
        if link is None:
            yield None
            return
        try:
            place = await self._places.enter(link)
        except StoreUnavailable:
            raise store_unavailable() from None
        if place is None:
            raise self._too_many_readers(link)
        try:
            yield place
        finally:
            with trio.move_on_after(PLACE_TIMEOUT, shield=True), suppress(StoreUnavailable):
                await self._places.leave(place)

    async def keep(self, visitor: Visitor, place: str | None) -> None:
        """Go on counting a reader, until cancelled."""
        while visitor.link is not None and place is not None:
            await trio.sleep(KEEP_INTERVAL)
            with suppress(StoreUnavailable):  # it counts a while longer in any case
                await self._places.keep(visitor.link, place)

    def _too_many_readers(self, link: PictureLink) -> ApiError:
        text = f"The link has {link.readers} readers already"
        return self._api.refusal(Limit.READERS_OF_LINK, text)
