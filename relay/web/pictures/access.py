"""Who asks for pictures, and whether they may."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from attrs import define, frozen
from starlette.requests import Request

from relay.connection.context import Watch
from relay.model.identity import User
from relay.web.api import Api
from relay.web.pictures.reader import PictureReader, reader_of


@define(eq=False)
class Visitor(AbstractContextManager["Visitor", None]):
    """A reader that was let in, until the end of the block."""

    reader: PictureReader
    by_link: bool = False

    @property
    def user_id(self) -> str | None:
        """The user for whom it counts."""
        identity = self.reader.identity
        return identity.user_id if isinstance(identity, User) else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Count it no more."""


@frozen
class Access:
    """Lets in those who send a token."""

    _api: Api
    _watch: Watch

    async def admit(self, request: Request) -> Visitor:
        """The reader behind a request; `ApiError`. Call its `watched` before anything is waited
        for."""
        identity = await self._api.authenticate(request, looks=True)
        return Visitor(reader_of(request.state.connection, self._watch, identity))
