"""`GET /alerts/ID/still.jpg` and `GET /alerts/ID/clip.mjpeg`: what is kept with an alert.

Who may see the stream now may see them. For all others they are not there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import structlog
import trio
from attrs import frozen
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from relay.clips.mjpeg_file import FIRST_LINE_BYTES, content_type_of
from relay.clips.storage import NotStored, PictureFile, PictureStorage
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.frames.jpeg_parts import JPEG_BEGINNING
from relay.model.alert_picture import AlertPicture, PictureKind, PictureName
from relay.model.identity import Identity
from relay.protocol.messages import ErrorCode
from relay.web.api import ApiError, NoQuery, query_of, store_unavailable
from relay.web.pictures.answers import (
    PICTURE_PIECE_BYTES,
    AnswerInSteps,
    headers_for,
    send_head,
)
from relay.web.pictures.reader import PictureReader, reader_of
from relay.web.pictures.source import PictureSource

MAX_PENDING_WAIT, PENDING_LOOK_INTERVAL = 10.0, 0.25
"""Seconds for which a still is waited for that is being kept, and between two looks."""
FILE_TIMEOUT = 10.0
"""Seconds for a piece of a file."""
NOTHING_KEPT = "Nothing of this kind is kept with an alert of this id that you may see"
COULD_NOT_KEEP = "It could not be kept with this alert"
NOT_YET = "It is being kept; try again in a moment"
NOT_HERE = "It cannot be read by this relay: it is on another machine, or its storage is away"
_ALERT_ID = re.compile(r"[1-9][0-9]{0,17}(?!\n)$")

log = structlog.get_logger()

T = TypeVar("T")


class KeptPictures(Protocol):
    """The table of what is kept with alerts; `StoreUnavailable`."""

    async def find(self, reader: Identity, name: PictureName) -> AlertPicture | None:
        """What a reader may see now; None if there is none."""


@frozen
class AlertPictures:
    """Answers with what is kept with alerts."""

    _source: PictureSource
    _table: KeptPictures
    _storage: PictureStorage

    async def still(self, request: Request) -> Response:
        """`GET /alerts/ID/still.jpg`."""
        return AnswerInSteps(partial(self._answer, request, "still"))

    async def clip(self, request: Request) -> Response:
        """`GET /alerts/ID/clip.mjpeg`."""
        return AnswerInSteps(partial(self._answer, request, "clip"))

    async def _answer(self, request: Request, kind: PictureKind, send: Send) -> None:
        query_of(request, NoQuery)
        identity = await self._source.api.authenticate(request, looks=True)
        reader = reader_of(request.state.connection, self._source.context.watch, identity)
        alert_id = request.path_params["alert_id"]
        if not _ALERT_ID.match(alert_id):
            raise _not_found(NOTHING_KEPT)
        name = PictureName(int(alert_id), kind)
        with reader.watched():
            picture = await self._find(reader, name)
            await self._send(request, picture, reader, send)

    async def _find(self, reader: PictureReader, name: PictureName) -> AlertPicture:
        """What is kept; `ApiError`. A still that is being kept is waited for."""
        deadline = trio.current_time() + (MAX_PENDING_WAIT if name.kind == "still" else 0.0)
        while True:
            picture = await self._look_up(reader.identity, name)
            if picture is None:
                raise _not_found(NOTHING_KEPT)
            if picture.state == "failed":
                raise _not_found(COULD_NOT_KEEP)
            if picture.state == "kept":
                return picture
            if trio.current_time() >= deadline:
                raise ApiError(503, ErrorCode.INVALID_MESSAGE, NOT_YET, {"Retry-After": "2"})
            await trio.sleep(PENDING_LOOK_INTERVAL)

    async def _look_up(self, identity: Identity, name: PictureName) -> AlertPicture | None:
        try:
            return await self._table.find(identity, name)
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            return None

    async def _send(
        self, request: Request, picture: AlertPicture, reader: PictureReader, send: Send
    ) -> None:
        begun = False
        try:
            if await _within_time(self._storage.place) != picture.place:
                raise _not_here()
            async with self._storage.open(picture.name) as file:
                first = await _within_time(partial(file.read, PICTURE_PIECE_BYTES))
                headers = _headers(picture, file, first)
                await send_head(send, 200, headers)
                begun = True
                body = b"" if request.method == "HEAD" else first
                await self._send_rest(file, body, picture, reader, send)
        except NotStored as problem:
            log.warning("a picture of an alert cannot be read", why=str(problem))
            if not begun:
                raise _not_here() from None
            reader.request.peer.stream.abort()

    async def _send_rest(
        self,
        file: PictureFile,
        piece: bytes,
        picture: AlertPicture,
        reader: PictureReader,
        send: Send,
    ) -> None:
        """Send a file, as long as the reader may see it."""
        identity, sent = reader.identity, 0
        while piece:
            sent += len(piece)
            more = sent < file.size
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            if not more:
                return
            if reader.identity is not identity:
                identity = reader.identity
                if await self._look_up(identity, picture.name) is None:
                    raise NotStored("its reader may not see it any more")
            piece = await _within_time(partial(file.read, PICTURE_PIECE_BYTES))
        if sent:
            raise NotStored("it is shorter than it was")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _within_time(ask: Callable[[], Awaitable[T]]) -> T:
    with trio.move_on_after(FILE_TIMEOUT):
        return await ask()
    raise NotStored(f"no answer within {FILE_TIMEOUT:g} s")


def _headers(picture: AlertPicture, file: PictureFile, first: bytes) -> dict[str, str]:
    """The headers for a file that begins so; `NotStored` if it is not what it has to be."""
    name = picture.name
    media_type: str | None = "image/jpeg"
    if name.kind == "clip":
        media_type = content_type_of(first[:FIRST_LINE_BYTES])
    elif not first.startswith(JPEG_BEGINNING):
        media_type = None
    if media_type is None:
        raise NotStored("it is not the file that was written")
    return {
        **headers_for(media_type, embeddable=False),
        "Content-Length": str(file.size),
        "Content-Disposition": f'inline; filename="alert-{name.file}"',
    }


def _not_found(text: str) -> ApiError:
    return ApiError(404, ErrorCode.INVALID_MESSAGE, text)


def _not_here() -> ApiError:
    return ApiError(503, ErrorCode.INVALID_MESSAGE, NOT_HERE)
