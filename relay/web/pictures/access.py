"""Who asks for pictures, and whether they may: with a token, or with a link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field, frozen
from starlette.requests import Request

from relay.auth.login import Login
from relay.connection.context import Watch
from relay.metrics import Limit
from relay.model.identity import User
from relay.model.link import LinkPurpose, PictureLink
from relay.protocol.messages import ErrorCode
from relay.web.api import Api, ApiError, token_of
from relay.web.pictures.reader import PictureReader, reader_of

WRONG_LINK = (
    "This link is not valid: it has expired, was revoked, or is for another stream or another use"
)
BOTH = "Send a token or a link, not both"


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
    _readers: Counter[str] = field(factory=Counter)
    """Those who have an answer, by link."""

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
            text = f"The link has {link.readers} readers already"
            raise self._api.refusal(Limit.READERS_OF_LINK, text)
        self._readers[link.link_id] += 1
        try:
            with visitor.reader.watched():
                yield visitor.reader
        finally:
            self._readers[link.link_id] -= 1
            if not self._readers[link.link_id]:
                del self._readers[link.link_id]
