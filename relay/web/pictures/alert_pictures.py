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
from attrs import field, frozen
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from relay.clips.made_clips import MadeClip, MadeClips
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
from relay.protocol.endings import Ending
from relay.protocol.messages import ErrorCode
from relay.web.api import (
    CHALLENGE,
    ApiError,
    NoQuery,
    query_of,
    store_unavailable,
    token_of,
)
from relay.web.pictures.access import BOTH
from relay.web.pictures.answers import (
    PICTURE_PIECE_BYTES,
    AnswerInSteps,
    headers_for,
    send_head,
)
from relay.web.pictures.byte_range import ByteRange, range_of
from relay.web.pictures.read_permit import ReadPermit
from relay.web.pictures.reader import PictureReader, reader_of
from relay.web.pictures.source import PictureSource

MAX_STILL_WAIT, MAX_CLIP_WAIT = 10.0, 20.0
"""Seconds for which what is being kept is waited for, less than a request may take."""
FIRST_LOOK_INTERVAL, MAX_LOOK_INTERVAL = 0.25, 0.5
"""Seconds between two looks at what is being kept, which are queries."""
MAX_WAITING_REQUESTS = 8
"""Of one user, or with the links to one alert, that wait for what is being kept."""
FILE_TIMEOUT = 10.0
"""Seconds for a piece of a file."""
NOTHING_KEPT = "Nothing of this kind is kept with an alert of this id that you may see"
COULD_NOT_KEEP = "It could not be kept with this alert"
WRONG_PICTURE_LINK = "This link is not valid, or it has expired"
NOT_YET = "It is being kept; try again in a moment"
ON_ANOTHER_MACHINE = (
    "It is on another machine, in the folder of the relay that had the phone: ask that relay. All"
    " of them can read it if they share one folder (picture_dir) or one bucket (picture_s3)"
)
STORAGE_AWAY = "Its storage cannot be read, or does not have it any more"
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
    made: MadeClips


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
            await self._look_up_for(reader, name)
            wanted = range_of(request, len(made.content), made.etag)
            headers = {
                **_headers_of("video/mp4", name.file.replace(".mjpeg", ".mp4"), embeddable=False),
                **wanted.headers,
                "ETag": made.etag,
            }
            body = b"" if request.method == "HEAD" else made.content[wanted.start : wanted.end]
            del made
            await send_head(send, wanted.status, headers)
            permit = ReadPermit(self._look_up, reader, name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(permit.watch, reader.request.peer.stream.abort)
                # In one piece, which counts as unread in full: it is in memory until it was read.
                await send({"type": "http.response.body", "body": body, "more_body": False})
                nursery.cancel_scope.cancel()

    async def _make_mp4(self, picture: AlertPicture, sender: str) -> MadeClip:
        """The MP4 file of a clip, which may have been made a moment ago; `ApiError`."""
        storage, made = self._kept.storage, self._kept.made.find(picture.name)
        if made is not None:
            return made
        try:
            if await _within_time(storage.place) != picture.place:
                raise _unreadable(ON_ANOTHER_MACHINE)
            async with storage.open(picture.name) as file:
                made = await self._kept.mp4.make(file, sender)
        except TooBusy as problem:
            text = str(problem)
            raise ApiError(503, ErrorCode.INVALID_MESSAGE, text, {"Retry-After": "5"}) from None
        except NoMp4 as problem:
            raise ApiError(406, ErrorCode.INVALID_MESSAGE, str(problem)) from None
        except NotStored as problem:
            raise self._away(problem) from None
        self._kept.made.keep(picture.name, made)
        return made

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
        await self._send(_FileAnswer(request, picture, reader, send), stream.abort)

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
            picture = await self._look_up_for(reader, name)
            if picture.state == "failed":
                raise _not_found(COULD_NOT_KEEP)
            if picture.state == "kept":
                return picture
            left = deadline - trio.current_time()
            if left <= 0:
                raise ApiError(503, ErrorCode.INVALID_MESSAGE, NOT_YET, {"Retry-After": "2"})
            await trio.sleep(min(backoff.next(), left))

    async def _look_up_for(self, reader: PictureReader | None, name: PictureName) -> AlertPicture:
        """What is there for a reader, whose session may have expired meanwhile; `ApiError`."""
        if reader is not None and await reader.has_expired():
            text = Ending.SESSION_EXPIRED.value.message
            raise ApiError(401, ErrorCode.SESSION_EXPIRED, text, CHALLENGE)
        picture = await self._look_up(None if reader is None else reader.identity, name)
        if picture is None:
            raise _not_found(NOTHING_KEPT)
        return picture

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
                raise _unreadable(ON_ANOTHER_MACHINE)
            async with storage.open(answer.picture.name) as file:
                first = await _within_time(partial(file.read, PICTURE_PIECE_BYTES))
                headers, etag = _headers(answer, first), answer.etag_of(file)
                wanted = range_of(answer.request, file.size, etag)
                await send_head(
                    answer.send, wanted.status, {**headers, **wanted.headers, "ETag": etag}
                )
                begun = True
                await self._send_rest(answer, file, wanted, first)
        except NotStored as problem:
            away = self._away(problem)
            if not begun:
                raise away from None
            abort()

    async def _send_rest(
        self, answer: _FileAnswer, file: PictureFile, wanted: ByteRange, first: bytes
    ) -> None:
        """Send what is wanted of a file that begins so, as long as the reader may see it."""
        permit = ReadPermit(self._look_up, answer.reader, answer.picture.name)
        left, piece = wanted.length, first[wanted.start : wanted.end]
        if answer.request.method == "HEAD":
            await answer.send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if not piece:
            file.seek(wanted.start)
        while left:
            if not piece:
                piece = await _within_time(partial(file.read, min(left, PICTURE_PIECE_BYTES)))
            if not piece:
                raise NotStored("it is shorter than it was")
            left -= len(piece)
            await answer.send({"type": "http.response.body", "body": piece, "more_body": left > 0})
            if left:
                await permit.check()
            piece = b""

    @staticmethod
    def _away(problem: NotStored) -> ApiError:
        log.warning("a picture of an alert cannot be read", why=str(problem))
        return _unreadable(STORAGE_AWAY)


@frozen
class _FileAnswer:
    """An answer with a file."""

    request: Request
    picture: AlertPicture
    reader: PictureReader | None
    """None: somebody with a link."""
    send: Send

    def etag_of(self, file: PictureFile) -> str:
        """It is written once: what was written under this name is the same for all readers."""
        name = self.picture.name
        return f'"{name.alert_id}-{name.kind}-{file.size}"'


async def _within_time(ask: Callable[[], Awaitable[T]]) -> T:
    with trio.move_on_after(FILE_TIMEOUT):
        return await ask()
    raise NotStored(f"no answer within {FILE_TIMEOUT:g} s")


def _headers(answer: _FileAnswer, first: bytes) -> dict[str, str]:
    """The headers for a file that begins so; `NotStored` if it is not what it has to be."""
    name = answer.picture.name
    media_type: str | None = "image/jpeg"
    if name.kind == "clip":
        media_type = content_type_of(first[:FIRST_LINE_BYTES])
    elif not first.startswith(JPEG_BEGINNING):
        media_type = None
    if media_type is None:
        raise NotStored("it is not the file that was written")
    return _headers_of(media_type, name.file, embeddable=answer.reader is None)


def _headers_of(media_type: str, file: str, *, embeddable: bool) -> dict[str, str]:
    return {
        **headers_for(media_type, embeddable=embeddable),
        "Content-Disposition": f'inline; filename="alert-{file}"',
    }


def _name_of(request: Request, kind: PictureKind) -> PictureName | None:
    """What a request asks for; None if it names no alert."""
    alert_id = request.path_params["alert_id"]
    return PictureName(int(alert_id), kind) if _ALERT_ID.match(alert_id) else None


def _not_found(text: str) -> ApiError:
    return ApiError(404, ErrorCode.INVALID_MESSAGE, text)


def _unreadable(text: str) -> ApiError:
    return ApiError(503, ErrorCode.INVALID_MESSAGE, text)
