"""`GET /streams/ID/latest.jpg`: the newest picture of a stream."""

from __future__ import annotations

from email.utils import formatdate
from functools import partial
from typing import Annotated, Literal
from weakref import WeakKeyDictionary

import msgspec
import trio
from attrs import define, field
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from relay.hub.frames.frame import Frame
from relay.hub.frames.jpeg_parts import JPEG_PARTS
from relay.hub.stream import Stream
from relay.protocol.messages import ErrorCode
from relay.renditions.jpeg_header import read_renderable_size
from relay.transport.link import Buffer
from relay.transport.outlet import MIN_HELD_BYTES
from relay.web.api import ApiError, query_of
from relay.web.pictures.access import Access, Visitor
from relay.web.pictures.answers import (
    AnswerInSteps,
    headers_for,
    send_head,
    send_picture,
)
from relay.web.pictures.reader import PictureReader
from relay.web.pictures.source import PictureSource, age_of

Width = Literal[160, 320, 640, 960]
"""Pixels."""
MAX_SEND_SECONDS, MIN_SEND_RATE = 60.0, 16 * 1024
"""For which one picture is held for its reader, and the bytes a second that prolong that."""
NO_RENDITIONS = (
    "This relay makes no smaller pictures: it needs the extra relay[renditions], `renditions`"
    " other than off, and `rendition_cores` above 0. Leave out ?width"
)
NOT_SCALABLE = "No smaller picture can be made of this one: it is no usual JPEG, or too large"
BUSY = "No smaller picture could be made in time; try again"


class StillQuery(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The parameters of `GET /streams/ID/latest.jpg`."""

    width: Width | None = None
    max_age: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    link: Annotated[str, Meta(max_length=64)] | None = None


@define(eq=False)
class Stills:
    """Answers with single pictures."""

    _source: PictureSource
    _access: Access
    _smaller: WeakKeyDictionary[Frame, dict[int, bytes]] = field(factory=WeakKeyDictionary)
    """Smaller pictures by width, as long as the frame that they were made of is kept."""

    async def latest(self, request: Request) -> Response:
        """The response, which does its work while it is sent."""
        return AnswerInSteps(partial(self._answer, request))

    async def _answer(self, request: Request, send: Send) -> None:
        query = query_of(request, StillQuery)
        stream_id = request.path_params["stream_id"]
        visitor = await self._access.admit(request, stream_id, "still", query.link)
        with self._access.visiting(visitor) as reader:
            async with self._source.find(stream_id, reader) as stream:
                frame = await self._source.newest(stream, reader, query.max_age)
                headers = self._headers(frame, stream, query.width, visitor)
                if _is_known(request, headers["ETag"]):
                    await send_head(send, 304, headers)
                    await send_picture(send, b"")
                    return
                picture = await self._picture(frame, stream, query.width)
                body = b"" if request.method == "HEAD" else picture
            headers["Content-Length"] = str(len(picture))
            await _send(send, body, headers, frame, reader)

    def _headers(
        self, frame: Frame, stream: Stream, width: int | None, visitor: Visitor
    ) -> dict[str, str]:
        suffix = "" if width is None else f"-{width}"
        return {
            **headers_for("image/jpeg", embeddable=visitor.by_link),
            "ETag": f'"{stream.epoch}-{frame.seq}{suffix}"',
            "Last-Modified": formatdate(frame.received_at / 1000, usegmt=True),
            "Age": str(max(0, int(age_of(frame, stream)))),
        }

    async def _picture(self, frame: Frame, stream: Stream, width: int | None) -> Buffer:
        picture = JPEG_PARTS.picture_in(await self._source.part_of(frame))
        if width is None:
            return picture
        renderer, owner_id = self._source.context.hub.renderer, stream.owner_id
        if renderer is None or owner_id is None:
            raise ApiError(503, ErrorCode.INVALID_MESSAGE, NO_RENDITIONS)
        size = read_renderable_size(picture)
        if size is None:
            raise ApiError(406, ErrorCode.INVALID_MESSAGE, NOT_SCALABLE)
        if size[0] <= width:
            return picture
        known = self._smaller.setdefault(frame, {})
        if width not in known:
            frame.keep()
            made = await renderer.render(owner_id, picture, [width])
            if width not in made:
                raise ApiError(503, ErrorCode.INVALID_MESSAGE, BUSY, {"Retry-After": "1"})
            known[width] = made[width]
        return known[width]


def _is_known(request: Request, etag: str) -> bool:
    """Whether the client has this picture already (RFC 9110, section 13.1.2)."""
    asked = request.headers.get("If-None-Match", "")
    known = [each.strip().removeprefix("W/") for each in asked.split(",")]
    return etag in known or known == ["*"]


async def _send(
    send: Send, body: Buffer, headers: dict[str, str], frame: Frame, reader: PictureReader
) -> None:
    """Send a picture to a reader that takes it fast enough."""
    if len(body) >= MIN_HELD_BYTES:
        reader.held = frame
        frame.note_slow(reader)
    with trio.move_on_after(MAX_SEND_SECONDS + len(body) / MIN_SEND_RATE) as scope:
        await send_head(send, 200, headers)
        await send_picture(send, body)
    reader.held = None
    if scope.cancelled_caught:
        reader.too_slow()
