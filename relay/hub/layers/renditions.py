"""The layers that the relay makes of a stream of single JPEG pictures, while a viewer needs them.

One picture of a stream is in work at a time, the newest when the one before is done. A viewer that
needs a smaller layer awaits it, and misses the pictures of which none is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio
from attrs import define, field, frozen

from relay.hub.frames.frame import Frame
from relay.hub.layers.layer_set import LayerSet, PictureLayer, StreamLayer
from relay.protocol.codec import MSGPACK_CODEC
from relay.protocol.messages import NO_METADATA, MalformedFrame, VideoFrame
from relay.renditions.jpeg_header import Size, read_renderable_size
from relay.renditions.sizes import plan_sizes
from relay.transport.link import Buffer

RENDITION_WIDTHS = (320, 640)
"""Pixels of the layers that are made, the smallest first."""
MAX_WIDTH_RATIO = 0.8
"""Of a rendition to its picture: a wider one would save little."""
ORIGINAL = "original"
MAX_FAILURES, FAILURE_PAUSE = 3, 10.0
"""Pictures in a row of which nothing could be made, and the seconds without any after that."""
SIZE_INTERVAL = 1.0
"""Seconds between two looks at the size of pictures of which no rendition is needed."""


class PictureRenderer(Protocol):
    """Makes smaller pictures of JPEG pictures."""

    def can_render(self, owner_id: str, now: float) -> bool:
        """Whether there is time for a picture of this user's now."""

    async def render(
        self, owner_id: str, picture: Buffer, widths: Sequence[int]
    ) -> Mapping[int, bytes]:
        """Smaller pictures by their widths, those that could be made; the widest comes first."""


@frozen
class RenditionJob:
    """A picture of which smaller ones are made."""

    frame: Frame
    owner_id: str
    """Of the stream when the frame came."""
    picture: bytes
    indexes: frozenset[int]
    """The layers to make."""
    layers: LayerSet


@define(eq=False)
class Renditions:
    """The renditions of one stream."""

    _renderer: PictureRenderer
    layers: LayerSet | None = None
    """None while pictures are not JPEG, or too small to be made smaller."""
    _size: Size | None = None
    """Of the last picture that was looked at."""
    look_at: float = field(factory=trio.current_time)
    """When to look at a picture again, by Trio's clock."""
    _is_steady: bool = True
    """Whether the last picture that was looked at had the size of the one before. Another size
    changes the layers of the whole audience, so the next look is not taken early."""
    _working: bool = False
    """Whether there is a job that is not done."""
    _failures: int = 0
    """In a row."""
    _rest_until: float = -math.inf

    def forget(self) -> None:
        """Forget the pictures of an epoch that ended."""
        self.layers = self._size = None
        self.look_at = trio.current_time()

    def look(self, frame: Frame, *, is_wanted: bool) -> bool:
        """Look at the size of the pictures, if anybody may want smaller ones; returns whether there
        are other layers than before. Call it when `look_at` says."""
        self.look_at = frame.accepted_at + SIZE_INTERVAL
        return is_wanted and self._note_size(_size_of(_picture(frame)))

    def note(self, frame: Frame) -> None:
        """Note a frame that came, of which nothing is made."""
        layers = self.layers
        if layers is not None:
            layers.begin_picture(frame.seq)
            layers.note(layers.top, frame.size)
            frame.layer = PictureLayer(layers.top, None, frozenset())

    def plan(self, frame: Frame, owner_id: str) -> RenditionJob | None:
        """Note a frame that came, the newest; returns what is to be made of it, if anything. Call
        `make` with that."""
        self.note(frame)
        layers = self.layers
        if layers is None or self._working or frame.accepted_at < self._rest_until:
            return None
        indexes = frozenset(layers.needed()) - {layers.top}
        if not indexes or not self._renderer.can_render(owner_id, frame.accepted_at):
            return None
        picture = _picture(frame)
        if picture is None or _size_of(picture) != self._size:
            if self._is_steady:
                self.look_at = frame.accepted_at
            return None
        frame.layer = PictureLayer(layers.top, None, indexes)
        self._working = True
        return RenditionJob(frame, owner_id, picture, indexes, layers)

    async def make(self, job: RenditionJob) -> Mapping[int, Frame]:
        """Make them; returns the frames by their layers, those that could be made."""
        layers, frame = job.layers, job.frame
        wanted = [RENDITION_WIDTHS[index] for index in sorted(job.indexes, reverse=True)]
        frame.keep()
        made: Mapping[int, bytes] = {}
        try:
            made = await self._renderer.render(job.owner_id, job.picture, wanted)
        finally:
            self._working = False
            self._note_outcome(failed=not made)
        frames = {}
        for index in job.indexes:
            picture = made.get(RENDITION_WIDTHS[index])
            if picture is not None:
                frames[index] = _rendition(frame, layers.layers[index].id, index, picture)
                layers.note(index, len(picture))
        return frames

    def _note_outcome(self, *, failed: bool) -> None:
        """Rest for a while when nothing comes of several pictures in a row."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= MAX_FAILURES:
            self._failures, self._rest_until = 0, trio.current_time() + FAILURE_PAUSE

    def _note_size(self, size: Size | None) -> bool:
        self._is_steady = size == self._size
        if self._is_steady:
            return False
        before, self._size = self.layers, size
        smaller = [] if size is None else _layers_below(size)
        self.layers = None
        if smaller and size is not None:
            original = StreamLayer(ORIGINAL, size[0])
            self.layers = LayerSet([*smaller, original], from_producer=False)
        return not (before is None and self.layers is None)


def _layers_below(size: Size) -> list[StreamLayer]:
    """The smaller layers of pictures of this size, with the largest width that each may have."""
    wanted = [each for each in RENDITION_WIDTHS if each <= MAX_WIDTH_RATIO * size[0]]
    chain = plan_sizes(size, reversed(wanted))
    widths = {width: made[0] for width, made in zip(reversed(wanted), chain, strict=True)}
    return [
        StreamLayer(str(width), max(widths[width], plan_sizes(size, [width])[0][0]))
        for width in wanted
    ]


def _size_of(picture: bytes | None) -> Size | None:
    return None if picture is None else read_renderable_size(picture)


def _picture(frame: Frame) -> bytes | None:
    """The bytes of a frame that may be a JPEG picture."""
    if frame.keyframe is not None or frame.is_large or isinstance(frame.message, MalformedFrame):
        return None
    picture = frame.codec.unpack(frame.message.data)
    return picture if picture is not None and picture.startswith(b"\xff\xd8") else None


def _rendition(frame: Frame, layer_id: str, index: int, picture: bytes) -> Frame:
    """The frame of a smaller picture, in place of the frame that it was made of."""
    message = frame.message
    data = MSGPACK_CODEC.pack(picture)
    metadata = message.metadata
    if frame.codec is not MSGPACK_CODEC and metadata is not NO_METADATA:
        metadata = MSGPACK_CODEC.pack(frame.codec.read(metadata))
    smaller = VideoFrame(data=data, timestamp=message.timestamp, metadata=metadata)
    return Frame(
        frame.stream_id,
        frame.seq,
        frame.received_at,
        frame.accepted_at,
        smaller,
        MSGPACK_CODEC,
        frame.account,
        layer=PictureLayer(index, layer_id, frozenset()),
    )
