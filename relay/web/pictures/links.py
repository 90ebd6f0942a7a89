"""Links over HTTP: `POST /links` makes one, `GET /links` lists one's own, and `DELETE /links/ID`
revokes one.

Only users have links; what one shows is what its maker may see at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec
from attrs import frozen
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from relay.connection.session.refusals import STORE_REJECTS
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.access.identity import User
from relay.model.access.link import (
    DEFAULT_LINK_READERS,
    MAX_LINK_READERS,
    MAX_LINK_SECONDS,
    LinkPurpose,
    NewLink,
    PictureLink,
    path_of,
)
from relay.protocol.codec import DECODE_ERRORS
from relay.protocol.invalid_message import in_words
from relay.protocol.messages import ErrorCode, StreamId, milliseconds
from relay.web.api import (
    ApiError,
    NoQuery,
    json_response,
    query_of,
    read_body,
    store_unavailable,
)
from relay.web.pictures.reader import reader_of
from relay.web.pictures.source import PictureSource

ONLY_USERS = "Only users have links; a service sends its token"


class LinkRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `POST /links`."""

    stream_id: StreamId
    what: LinkPurpose
    seconds: Annotated[int, Meta(ge=1, le=MAX_LINK_SECONDS)] = 3600
    readers: Annotated[int, Meta(ge=1, le=MAX_LINK_READERS)] = DEFAULT_LINK_READERS


class LinksOfUsers(Protocol):
    """The links; `StoreUnavailable`."""

    async def make(
        self, link: NewLink, user_id: str, *, by_session: bool
    ) -> tuple[PictureLink, str]:
        """Make a link of a user's; returns it and its capability; `ConfigError` if there are too
        many."""

    async def all(self, user_id: str | None = None) -> Sequence[PictureLink]:
        """The links of a user that are valid."""

    async def revoke(self, link_id: str, *, user_id: str | None = None) -> bool:
        """Remove a link of a user's; False if there is none."""


@frozen
class LinkApi:
    """Answers requests about links."""

    _source: PictureSource
    _store: LinksOfUsers

    async def make(self, request: Request) -> Response:
        """`POST /links`: a link to a live stream that the sender may see."""
        query_of(request, NoQuery)
        await self._user(request)  # before the body is read
        asked = _link_in(await read_body(request))
        user = await self._user(request, again=True)
        reader = reader_of(request.state.connection, self._source.context.watch, user)
        async with self._source.find(asked.stream_id, reader):
            pass  # it may be seen
        new = NewLink(asked.stream_id, asked.what, asked.seconds, asked.readers)
        try:
            link, capability = await self._store.make(
                new, user.user_id, by_session=user.source == "session"
            )
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
        except ConfigError as problem:
            raise ApiError(409, ErrorCode.INVALID_MESSAGE, str(problem)) from None
        reason = f"made {link.link_id}: {link.purpose}, {asked.seconds} s"
        self._source.api.record(
            request, "link", "succeeded", user, reason, stream_id=link.stream_id
        )
        url = path_of(link, capability, request.scope["root_path"])
        return json_response({"link": as_json(link), "url": url}, 201)

    async def listed(self, request: Request) -> Response:
        """`GET /links`: the sender's own links."""
        query_of(request, NoQuery)
        user = await self._user(request)
        try:
            links = await self._store.all(user.user_id)
        except StoreUnavailable:
            raise store_unavailable() from None
        return json_response({"links": [as_json(each) for each in links]})

    async def revoke(self, request: Request) -> Response:
        """`DELETE /links/ID`: no one gets in with it any more, and who has an answer loses it."""
        query_of(request, NoQuery)
        user = await self._user(request)
        link_id = request.path_params["link_id"]
        try:
            found = await self._store.revoke(link_id, user_id=user.user_id)
        except StoreUnavailable:
            raise store_unavailable() from None
        except (StoreRejects, ConfigError):
            found = False
        if not found:
            raise ApiError(404, ErrorCode.INVALID_MESSAGE, "You have no link of this id")
        self._source.api.record(request, "link", "succeeded", user, f"revoked {link_id}")
        return json_response({"revoked": link_id})

    async def _user(self, request: Request, *, again: bool = False) -> User:
        identity = await self._source.api.authenticate(request, again=again)
        if not isinstance(identity, User):
            raise ApiError(403, ErrorCode.UNAUTHORIZED, ONLY_USERS)
        return identity


def as_json(link: PictureLink) -> dict[str, object]:
    """What may be told of a link to its maker."""
    return {
        "id": link.link_id,
        "streamId": link.stream_id,
        "what": link.purpose,
        "readers": link.readers,
        "expiresAt": milliseconds(link.expires_at),
    }


def _link_in(body: bytes) -> LinkRequest:
    try:
        return msgspec.json.decode(body, type=LinkRequest)
    except msgspec.ValidationError as problem:
        text = f"Invalid request: {in_words(problem, LinkRequest)}"
    except DECODE_ERRORS:
        text = "Invalid request: not a JSON object"
    raise ApiError(400, ErrorCode.INVALID_MESSAGE, text)
