"""`GET /alerts/ID/still.jpg` and `GET /alerts/ID/clip.mjpeg`: what is kept with an alert.

Who may see the stream now may see them, and who comes by a signed link. For all others they are not
there.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Protocol, TypeVar, cast

import msgspec
import structlog
import trio
from attrs import define, field, frozen
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from relay.clips.mjpeg_file import FIRST_LINE_BYTES, content_type_of
from relay.clips.mp4 import Mp4Maker, NoMp4, TooBusy
from relay.clips.storage import NotStored, PictureFile, PictureStorage
from relay.concurrency.backoff import Backoff
from relay.connection.http_request import HttpRequest
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.frames.jpeg_parts import JPEG_BEGINNING
from relay.model.access.identity import Identity
from relay.model.alerts.alert_picture import AlertPicture, PictureKind, PictureName
from relay.model.alerts.picture_link import PictureLinks
from relay.protocol.messages import ErrorCode
from relay.web.api import ApiError, NoQuery, query_of, store_unavailable, token_of
from relay.web.pictures.access import BOTH
from relay.web.pictures.answers import (
    PICTURE_PIECE_BYTES,
    AnswerInSteps,
    headers_for,
    send_head,
)
from relay.web.pictures.reader import PictureReader, reader_of
from relay.web.pictures.source import PictureSource

MAX_STILL_WAIT, MAX_CLIP_WAIT = 10.0, 20.0
"""Seconds for which what is being kept is waited for, less than a request may take."""
FIRST_LOOK_INTERVAL, MAX_LOOK_INTERVAL = 0.25, 0.5
"""Seconds between two looks at what is being kept, which are queries."""
MAX_WAITING_REQUESTS = 8
"""Of one user, or with the links to one alert, that wait for what is being kept."""
LOOK_AGAIN_INTERVAL = 5.0
"""Seconds of reading after which it is asked whether the file may still be read."""
FILE_TIMEOUT = 10.0
"""Seconds for a piece of a file."""
NOTHING_KEPT = "Nothing of this kind is kept with an alert of this id that you may see"
COULD_NOT_KEEP = "It could not be kept with this alert"
WRONG_PICTURE_LINK = "This link is not valid, or it has expired"
NOT_YET = "It is being kept; try again in a moment"
NOT_HERE = "It cannot be read by this relay: it is on another machine, or its storage is away"
_ALERT_ID = re.compile(r"[1-9][0-9]{0,17}(?!\n)$")

log = structlog.get_logger()

T = TypeVar("T")


class KeptPictures(Protocol):
    """The table of what is kept with alerts; `StoreUnavailable`."""

    async def find(self, reader: Identity | None, name: PictureName) -> AlertPicture | None:
        """What a reader may see now, or somebody with a link; None if there is none."""


@frozen
class KeptWithAlerts:
    """What is kept with alerts, where, and who signs links to it."""

    table: KeptPictures
    storage: PictureStorage
    links: PictureLinks
    mp4: Mp4Maker


class PictureQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of a signed link; without them, the sender has a token."""

    expires: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    signature: Annotated[str, Meta(max_length=64)] | None = None


@frozen
class AlertPictures:
    """Answers with what is kept with alerts."""

    _source: PictureSource
    _kept: KeptWithAlerts
    _waiting: Counter[str] = field(factory=Counter)
    """The requests that wait for what is being kept, by those who ask."""

    async def still(self, request: Request) -> Response:
        """`GET /alerts/ID/still.jpg`."""
        return AnswerInSteps(partial(self._answer, request, "still"))

    async def clip(self, request: Request) -> Response:
        """`GET /alerts/ID/clip.mjpeg`."""
        return AnswerInSteps(partial(self._answer, request, "clip"))

    async def mp4(self, request: Request) -> Response:
        """`GET /alerts/ID/clip.mp4`: the clip as H.264, made for this request."""
        return AnswerInSteps(partial(self._answer_mp4, request))

    async def _answer_mp4(self, request: Request, send: Send) -> None:
        query_of(request, NoQuery)
        identity = await self._source.api.authenticate(request, looks=True)
        reader = reader_of(request.state.connection, self._source.context.watch, identity)
        name = _name_of(request, "clip")
        if name is None:
            raise _not_found(NOTHING_KEPT)
        with reader.watched():
            picture = await self._find(reader, name)
            made = await self._make_mp4(picture, identity.sender)
            if await self._look_up(reader.identity, name) is None:
                raise _not_found(NOTHING_KEPT)
            file = PictureName(name.alert_id, "clip").file.replace(".mjpeg", ".mp4")
            headers = _headers_of("video/mp4", len(made), file, embeddable=False)
            await send_head(send, 200, headers)
            # In one piece, which counts as unread in full: it is in memory until it has been read.
            body = b"" if request.method == "HEAD" else made
            await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _make_mp4(self, picture: AlertPicture, sender: str) -> bytes:
        """The MP4 file of a clip; `ApiError`."""
        storage = self._kept.storage
        try:
            if await _within_time(storage.place) != picture.place:
                raise _not_here()
            async with storage.open(picture.name) as file:
                return await self._kept.mp4.make(file, sender)
        except TooBusy as problem:
            text = str(problem)
            raise ApiError(503, ErrorCode.INVALID_MESSAGE, text, {"Retry-After": "5"}) from None
        except NoMp4 as problem:
            raise ApiError(406, ErrorCode.INVALID_MESSAGE, str(problem)) from None
        except NotStored as problem:
            log.warning("a picture of an alert cannot be read", why=str(problem))
            raise _not_here() from None

    async def _answer(self, request: Request, kind: PictureKind, send: Send) -> None:
        query = query_of(request, PictureQuery)
        name = _name_of(request, kind)
        if query.signature is not None or query.expires is not None:
            self._check_link(request, name, query)
            await self._answer_for(request, name, None, send)
            return
        identity = await self._source.api.authenticate(request, looks=True)
        reader = reader_of(request.state.connection, self._source.context.watch, identity)
        with reader.watched():
            await self._answer_for(request, name, reader, send)

    def _check_link(self, request: Request, name: PictureName | None, query: PictureQuery) -> None:
        """`ApiError` unless the request comes by a link that is valid."""
        if token_of(request):
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, BOTH)
        expires, signature = query.expires or 0, query.signature or ""
        links = self._kept.links
        if name is None or not links.is_valid(name, expires, signature, time.time()):
            raise ApiError(401, ErrorCode.AUTH_FAILED, WRONG_PICTURE_LINK)
        self._source.api.count_request(f"picture-link:{name.alert_id}")

    async def _answer_for(
        self,
        request: Request,
        name: PictureName | None,
        reader: PictureReader | None,
        send: Send,
    ) -> None:
        """Send what is kept to a reader, or to somebody with a link."""
        if name is None:
            raise _not_found(NOTHING_KEPT)
        wait = MAX_STILL_WAIT if name.kind == "still" else MAX_CLIP_WAIT
        picture = await self._find(reader, name, wait)
        stream = cast("HttpRequest", request.state.connection).peer.stream
        await self._send(_FileAnswer(request.method == "HEAD", picture, reader, send), stream.abort)

    async def _find(
        self, reader: PictureReader | None, name: PictureName, wait: float = 0.0
    ) -> AlertPicture:
        """What is kept; `ApiError`. What is being kept is waited for, so many seconds."""
        asks = f"alert:{name.alert_id}" if reader is None else reader.identity.sender
        self._waiting[asks] += 1
        try:
            if self._waiting[asks] > MAX_WAITING_REQUESTS:
                wait = 0.0
            return await self._wait_for(reader, name, trio.current_time() + wait)
        finally:
            self._waiting[asks] -= 1
            if not self._waiting[asks]:
                del self._waiting[asks]

    async def _wait_for(
        self, reader: PictureReader | None, name: PictureName, deadline: float
    ) -> AlertPicture:
        backoff = Backoff(FIRST_LOOK_INTERVAL, MAX_LOOK_INTERVAL)
        while True:
            picture = await self._look_up(None if reader is None else reader.identity, name)
            if picture is None:
                raise _not_found(NOTHING_KEPT)
            if picture.state == "failed":
                raise _not_found(COULD_NOT_KEEP)
            if picture.state == "kept":
                return picture
            left = deadline - trio.current_time()
            if left <= 0:
                raise ApiError(503, ErrorCode.INVALID_MESSAGE, NOT_YET, {"Retry-After": "2"})
            await trio.sleep(min(backoff.next(), left))

    async def _look_up(self, identity: Identity | None, name: PictureName) -> AlertPicture | None:
        try:
            return await self._kept.table.find(identity, name)
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            return None

    async def _send(self, answer: _FileAnswer, abort: Callable[[], object]) -> None:
        begun, storage = False, self._kept.storage
        try:
            if await _within_time(storage.place) != answer.picture.place:
                raise _not_here()
            async with storage.open(answer.picture.name) as file:
                first = await _within_time(partial(file.read, PICTURE_PIECE_BYTES))
                headers = _headers(answer, file, first)
                await send_head(answer.send, 200, headers)
                begun = True
                await self._send_rest(answer, file, b"" if answer.head_only else first)
        except NotStored as problem:
            log.warning("a picture of an alert cannot be read", why=str(problem))
            if not begun:
                raise _not_here() from None
            abort()

    async def _send_rest(self, answer: _FileAnswer, file: PictureFile, piece: bytes) -> None:
        """Send a file, as long as the reader may see it."""
        permit, sent = ReadPermit(self._look_up, answer.reader, answer.picture.name), 0
        while piece:
            sent += len(piece)
            more = sent < file.size
            await answer.send({"type": "http.response.body", "body": piece, "more_body": more})
            if not more:
                return
            await permit.check()
            piece = await _within_time(partial(file.read, PICTURE_PIECE_BYTES))
        if sent:
            raise NotStored("it is shorter than it was")
        await answer.send({"type": "http.response.body", "body": b"", "more_body": False})


@define(eq=False)
class ReadPermit:
    """Whether a file may still be read by somebody who has begun to: for hours, if slowly."""

    _look_up: Callable[[Identity | None, PictureName], Awaitable[AlertPicture | None]]
    _reader: PictureReader | None
    """None: somebody with a link."""
    _name: PictureName
    _identity: Identity | None = None
    """As it was when that was asked last."""
    _asked_at: float = field(factory=trio.current_time)

    def __attrs_post_init__(self) -> None:
        self._identity = None if self._reader is None else self._reader.identity

    async def check(self) -> None:
        """`NotStored` if it may not be read any more, as far as that is known."""
        identity = None if self._reader is None else self._reader.identity
        is_changed = identity is not self._identity
        if not is_changed and trio.current_time() - self._asked_at < LOOK_AGAIN_INTERVAL:
            return
        try:
            found = await self._look_up(identity, self._name)
        except ApiError:  # the store is away; who has lost nothing reads on
            if is_changed:
                raise NotStored("it is not known whether its reader may still see it") from None
        else:
            if found is None:
                raise NotStored("its reader may not see it any more")
        self._identity, self._asked_at = identity, trio.current_time()


@frozen
class _FileAnswer:
    """An answer with a file."""

    head_only: bool
    picture: AlertPicture
    reader: PictureReader | None
    """None: somebody with a link."""
    send: Send


async def _within_time(ask: Callable[[], Awaitable[T]]) -> T:
    with trio.move_on_after(FILE_TIMEOUT):
        return await ask()
    raise NotStored(f"no answer within {FILE_TIMEOUT:g} s")


def _headers(answer: _FileAnswer, file: PictureFile, first: bytes) -> dict[str, str]:
    """The headers for a file that begins so; `NotStored` if it is not what it has to be."""
    name = answer.picture.name
    media_type: str | None = "image/jpeg"
    if name.kind == "clip":
        media_type = content_type_of(first[:FIRST_LINE_BYTES])
    elif not first.startswith(JPEG_BEGINNING):
        media_type = None
    if media_type is None:
        raise NotStored("it is not the file that was written")
    return _headers_of(media_type, file.size, name.file, embeddable=answer.reader is None)


def _headers_of(media_type: str, size: int, file: str, *, embeddable: bool) -> dict[str, str]:
    return {
        **headers_for(media_type, embeddable=embeddable),
        "Content-Length": str(size),
        "Content-Disposition": f'inline; filename="alert-{file}"',
    }


def _name_of(request: Request, kind: PictureKind) -> PictureName | None:
    """What a request asks for; None if it names no alert."""
    alert_id = request.path_params["alert_id"]
    return PictureName(int(alert_id), kind) if _ALERT_ID.match(alert_id) else None


def _not_found(text: str) -> ApiError:
    return ApiError(404, ErrorCode.INVALID_MESSAGE, text)


def _not_here() -> ApiError:
    return ApiError(503, ErrorCode.INVALID_MESSAGE, NOT_HERE)
