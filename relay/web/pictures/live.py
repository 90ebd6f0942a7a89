"""`GET /streams/ID/live.mjpeg`: a stream as MJPEG, which is pictures one behind the other.

The reader is a consumer of the hub like any viewer: of a frame it gets the part that is made once
for all such readers, written to the outlet of its connection. What does not fit waits as the newest
frame alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Annotated

import msgspec
import trio
from attrs import frozen
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from relay.hub.consumer import Consumer
from relay.hub.flow_control import FlowControlOptions
from relay.hub.frames.frame import Frame
from relay.hub.frames.jpeg_parts import JPEG_PARTS
from relay.hub.stream import Stream
from relay.metrics import Limit
from relay.protocol.messages import ErrorCode
from relay.renditions.jpeg_header import read_renderable_size
from relay.web.api import ApiError, query_of
from relay.web.http import HAND_OVER
from relay.web.pictures.access import Access, Visitor
from relay.web.pictures.answers import AnswerInSteps, headers_for, send_head, send_picture
from relay.web.pictures.reader import PictureReader
from relay.web.pictures.source import PictureSource
from relay.web.pictures.stills import NO_RENDITIONS, NOT_SCALABLE, Width

READER_LOOK_INTERVAL = 5.0
"""Seconds between two looks at whether the reader still gets anything."""
REST_TIMEOUT = 2.0
"""Seconds in which a reader takes the rest of its last picture."""


class LiveQuery(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The parameters of `GET /streams/ID/live.mjpeg`."""

    width: Width | None = None
    max_fps: Annotated[float, Meta(ge=0.1, le=240)] | None = None
    link: Annotated[str, Meta(max_length=64)] | None = None


@frozen
class Live:
    """Answers with streams as MJPEG."""

    _source: PictureSource
    _access: Access
    _idle_timeout: float
    """Seconds without a picture after which an answer ends."""

    async def live(self, request: Request) -> Response:
        """The response, which does its work while it is sent."""
        return AnswerInSteps(partial(self._answer, request))

    async def _answer(self, request: Request, send: Send) -> None:
        query = query_of(request, LiveQuery)
        stream_id = request.path_params["stream_id"]
        visitor = await self._access.admit(request, stream_id, "mjpeg", query.link)
        with self._access.visiting(visitor) as reader, ExitStack() as stack:
            async with self._source.find(stream_id, reader) as stream:
                self._source.refuse_if_too_many(reader)
                # Until the answer has begun; else a stream of another node would be given up.
                waiting = stack.enter_context(self._source.waiting(stream, reader))
                frame = await self._source.first_picture(waiting)
                await self._check(frame, stream, query.width)
                headers = headers_for(JPEG_PARTS.content_type, embeddable=visitor.by_link)
                if request.method == "HEAD":
                    await send_head(send, 200, headers)
                    await send_picture(send, b"")
                    return
                async with self._access.placed(visitor) as place:
                    self._count(visitor)
                    await send_head(send, 200, headers)
                    options = FlowControlOptions(
                        max_fps=query.max_fps,
                        max_width=query.width,
                        adapts=query.width is not None,
                    )
                    consumer = self._source.consumer(Consumer, stream_id, reader, options)
                    keep = partial(self._access.keep, visitor, place)
                    write = partial(self._write, reader, consumer, stack, keep)
                    await send({"type": HAND_OVER, "write": write})

    async def _check(self, frame: Frame, stream: Stream, width: int | None) -> None:
        """Refuse a stream whose pictures are of no use; `ApiError`."""
        picture = JPEG_PARTS.picture_in(await self._source.part_of(frame))
        if width is None or stream.layers is not None:
            return
        if self._source.context.hub.renderer is None:
            raise ApiError(503, ErrorCode.INVALID_MESSAGE, NO_RENDITIONS)
        if read_renderable_size(picture) is None:
            raise ApiError(406, ErrorCode.INVALID_MESSAGE, NOT_SCALABLE)

    def _count(self, visitor: Visitor) -> None:
        """Count the connection as a viewer's is; `ApiError` if it is one too many."""
        reader = visitor.reader
        limit = reader.request.stay(reader.identity, visitor.user_id, gives_way=visitor.by_link)
        if limit is Limit.CONNECTIONS_OF_USER:
            raise self._source.api.refusal(limit, "The user has too many connections")
        if limit is not None:
            raise self._source.api.refusal(limit, "There are too many connections")

    async def _write(
        self,
        reader: PictureReader,
        consumer: Consumer,
        waiting: ExitStack,
        keep: Callable[[], Awaitable[None]],
    ) -> None:
        """Write pictures until the answer is over, or the connection ends; what waited for the
        first of them has done so. `keep` is run meanwhile."""
        outlet = consumer.outlet
        outlet.stall_timeout = self._idle_timeout
        await outlet.send(JPEG_PARTS.first_boundary)
        try:
            async with trio.open_nursery() as nursery:
                outlet.open(partial(nursery.start_soon, outlet.run))
                nursery.start_soon(reader.keep_session)
                nursery.start_soon(keep)
                with reader.subscribed(self._source.context.hub, consumer) as stream:
                    waiting.close()
                    await self._wait_for_end(stream, reader, consumer)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(REST_TIMEOUT, shield=True):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await outlet.drain(reader.request.peer.mailbox, b"")

    async def _wait_for_end(
        self, stream: Stream, reader: PictureReader, consumer: Consumer
    ) -> None:
        """Wait until the reader may not see the stream any more, or got nothing for too long."""
        written, since = consumer.ledger.written, trio.current_time()
        while stream.may_see(consumer) and not consumer.outlet.closing:
            with trio.move_on_after(READER_LOOK_INTERVAL):
                await reader.changed.wait()
            if consumer.ledger.written != written:
                written, since = consumer.ledger.written, trio.current_time()
            elif trio.current_time() - since >= self._idle_timeout:
                return
