"""Finds streams and their pictures for those who ask over plain HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio
from attrs import frozen

from relay.connection.context import SessionContext
from relay.hub.consumer import Consumer
from relay.hub.flow_control import FlowControlOptions
from relay.hub.frames.frame import Frame
from relay.hub.frames.jpeg_parts import JPEG_PARTS
from relay.hub.still_consumer import StillConsumer
from relay.hub.stream import Stream
from relay.metrics import Limit
from relay.model.access import permissions
from relay.model.access.identity import User
from relay.protocol.messages import STREAM_ID_PATTERN, ErrorCode, now_ms
from relay.transport.link import Buffer
from relay.web.api import Api, ApiError
from relay.web.pictures.answers import no_stream, not_jpeg
from relay.web.pictures.reader import PictureReader

MAX_WAIT = 10.0
"""Seconds for which a reader waits for a picture."""
AnyConsumer = TypeVar("AnyConsumer", bound=Consumer)
NO_PICTURE_IN_TIME = "No picture came in time: the phone may be asleep, or out of reach"


@frozen
class PictureSource:
    """The pictures of all streams that the hub knows, or can find."""

    api: Api
    context: SessionContext

    @asynccontextmanager
    async def find(self, stream_id: str, reader: PictureReader) -> AsyncIterator[Stream]:
        """A live stream that the reader may see, wherever its producer is; `ApiError`."""
        if not re.match(STREAM_ID_PATTERN, stream_id):
            raise no_stream()
        hub, directory = self.context.hub, self.context.directory
        known = hub.find(stream_id)
        if directory is not None and (known is None or not known.live):
            await directory.find(stream_id)
        stream = hub.find(stream_id)
        if stream is None:
            raise no_stream()
        try:
            if not stream.live or not permissions.may_watch(
                reader.identity, stream_id, stream.owner_id
            ):
                raise no_stream()
            yield stream
        finally:
            hub.forget_unused(stream)

    async def newest(self, stream: Stream, reader: PictureReader, max_age: float | None) -> Frame:
        """The newest picture, of at most `max_age` seconds if that is asked for; `ApiError`.

        It comes from memory if there is one, and else is waited for.
        """
        kept = stream.fanout.newest
        if kept is not None and (max_age is None or age_of(kept, stream) <= max_age):
            return kept
        if max_age is None and not stream.is_remote:
            text = "The stream has sent no picture yet; ?maxAge=SECONDS waits for one"
            raise ApiError(404, ErrorCode.INVALID_MESSAGE, text)
        self.refuse_if_too_many(reader)
        return await self._wait_for_one(stream, reader, max_age)

    @contextmanager
    def waiting(self, stream: Stream, reader: PictureReader) -> Iterator[StillConsumer]:
        """Consume the stream within the block, to fetch pictures."""
        options = FlowControlOptions(adapts=False)
        consumer = self.consumer(StillConsumer, stream.stream_id, reader, options)
        with reader.subscribed(self.context.hub, consumer):
            yield consumer

    async def first_picture(self, consumer: StillConsumer) -> Frame:
        """The picture that is kept, or the next one; `ApiError`."""
        with trio.move_on_after(MAX_WAIT):
            frame = await consumer.fetch()
            if frame is None:
                raise not_jpeg()
            return frame
        raise _no_picture_in_time()

    async def part_of(self, frame: Frame) -> Buffer:
        """A frame as a part of an answer; `ApiError` if it is no JPEG picture."""
        if frame.is_large and not frame.is_encoded(JPEG_PARTS, in_parts=False):
            frame.keep()
            await frame.encode(JPEG_PARTS, in_parts=False)
        part = frame.encoded(JPEG_PARTS)
        if part is None:
            raise not_jpeg()
        return part

    def consumer(
        self,
        kind: type[AnyConsumer],
        stream_id: str,
        reader: PictureReader,
        options: FlowControlOptions,
    ) -> AnyConsumer:
        """A subscription of this reader to pictures."""
        return kind(
            stream_id=stream_id,
            wants_frames=True,
            wants_alerts=False,
            peer=reader,
            outlet=reader.request.peer.stream.outlet,
            metrics=self.context.metrics,
            flow_control=options,
            lossless_bytes=0,
            totals=self.context.hub.totals,
            form=JPEG_PARTS,
        )

    def refuse_if_too_many(self, reader: PictureReader) -> None:
        """`ApiError` if the user has too many subscriptions to have one more."""
        context, identity = self.context, reader.identity
        most = context.limits.max_subscriptions_of_user
        if most is None or not isinstance(identity, User):
            return
        if context.hub.count_subscriptions_of(identity) >= most:
            raise self.api.refusal(
                Limit.SUBSCRIPTIONS_OF_USER, f"A user may have {most} subscriptions"
            )

    async def _wait_for_one(
        self, stream: Stream, reader: PictureReader, max_age: float | None
    ) -> Frame:
        """Consume the stream until a picture comes that is new enough; `ApiError`."""
        began = trio.current_time()
        with self.waiting(stream, reader) as consumer, trio.move_on_after(MAX_WAIT):
            first: int | None = None
            while True:
                frame = await consumer.fetch()
                if frame is None:
                    raise not_jpeg()
                first = frame.seq if first is None else first
                young_enough = max(trio.current_time() - began, max_age or 0.0)
                is_new = frame.seq != first or age_of(frame, stream) <= young_enough
                if max_age is None or is_new:
                    return frame
        raise _no_picture_in_time()


def age_of(frame: Frame, stream: Stream) -> float:
    """Seconds since a frame was accepted, here or on another node, whose clock may differ."""
    here = trio.current_time() - frame.accepted_at
    return max(here, (now_ms() - frame.received_at) / 1000) if stream.is_remote else here


def _no_picture_in_time() -> ApiError:
    return ApiError(504, ErrorCode.INVALID_MESSAGE, NO_PICTURE_IN_TIME, {"Retry-After": "2"})
