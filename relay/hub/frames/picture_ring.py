"""The last seconds of a stream's JPEG pictures, for the clip of an alert.

Only where a clip may be wanted is there a ring. A picture is copied into it as it came, so that it
takes its own bytes and no more: a frame would bring all its encodings. The bytes count with the
frames that are kept for the stream's owner, and are the first to be given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, field, frozen
from msgspec import Raw

from relay.concurrency.time_slice import TimeSlice
from relay.hub.flow_control import Pace
from relay.hub.frames.frame import Frame
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.frames.jpeg_parts import JPEG_BEGINNING
from relay.protocol.codec import Codec
from relay.protocol.messages import MalformedFrame, VideoFrame

PICTURE_BYTES = 400
"""What a picture takes beside its content, about."""
_JPEG_AS_JSON = b'"/9j/'
"""How `JPEG_BEGINNING` begins as base64."""
_MAX_MSGPACK_HEAD = 5
"""Bytes before the content of a byte string."""


@frozen(eq=False)
class KeptPicture:
    """A picture as its producer sent it."""

    seq: int
    layer: int
    """0 in a stream without layers."""
    received_at: int
    """The relay's clock, ms since the Unix epoch."""
    accepted_at: float
    """The same moment by Trio's clock."""
    _data: bytes = field(repr=False)
    _codec: Codec = field(repr=False)
    _account: FrameAccount = field(repr=False)
    """Counts it as long as it lives."""

    def __attrs_post_init__(self) -> None:
        self._account.count(self.size)

    def __del__(self) -> None:
        self._account.count(-self.size)

    @classmethod
    def of(cls, frame: Frame) -> KeptPicture:
        """A copy of what a frame shows."""
        data, layer = bytes(memoryview(frame.message.data)), frame.layer
        index = 0 if layer is None else layer.index
        return cls(
            *(frame.seq, index, frame.received_at, frame.accepted_at),
            *(data, frame.codec, frame.account),
        )

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self._data) + PICTURE_BYTES

    async def content(self, time_slice: TimeSlice | None = None) -> bytes | None:
        """The JPEG picture; None if it is none. Others have a turn meanwhile, if the time of the
        slice is over: that of several pictures, or of this one."""
        steps, time_slice = self._codec.unpack_in_steps(Raw(self._data)), time_slice or TimeSlice()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                content: bytes | None = end.value
                break
            await time_slice.pause_if_over()
        if content is None or not content.startswith(JPEG_BEGINNING):
            return None
        return content


class PictureListener(Protocol):
    """Gets each picture of a stream that is not thinned out. Nothing here waits, or raises."""

    def take(self, picture: KeptPicture) -> object:
        """Another picture has come."""

    def give_up(self) -> object:
        """Hold no pictures any more: there is no room for them."""

    def end(self) -> object:
        """No more pictures come: the stream is over, or another's."""


@define(eq=False)
class PictureRing:
    """The newest pictures of a stream, in order."""

    seconds: float = 0.0
    """How long a picture is kept; with 0 none is, and all go to the listeners."""
    max_bytes: int = 0
    _pace: Pace | None = None
    standby: float | None = None
    """Pictures a second that it wants while nobody watches; None: what comes will do."""
    listeners: dict[PictureListener, None] = field(factory=dict)
    bytes: int = 0
    _pictures: deque[KeptPicture] = field(factory=deque)

    @property
    def pictures(self) -> Sequence[KeptPicture]:
        """Those that are kept, the oldest first."""
        return tuple(self._pictures)

    def add(self, frames: Sequence[Frame]) -> None:
        """Keep copies of pictures that have just come, unless they are thinned out."""
        if not self.seconds and not self.listeners:
            return
        for frame in frames:
            if shows_jpeg(frame.message, frame.codec) and self._is_due(frame):
                self._add(KeptPicture.of(frame))

    def _is_due(self, frame: Frame) -> bool:
        if self._pictures and self._pictures[-1].seq == frame.seq:
            return True  # another layer of a picture that was due
        return self._pace is None or self._pace.is_due(frame.accepted_at)

    def _add(self, picture: KeptPicture) -> None:
        for listener in [*self.listeners]:
            listener.take(picture)
        if not self.seconds:
            return
        if self._pictures and self._pictures[-1].seq == picture.seq:
            if picture.layer < self._pictures[-1].layer:
                return
            self.bytes -= self._pictures.pop().size
        self._pictures.append(picture)
        self.bytes += picture.size
        self.trim(picture.accepted_at)

    def trim(self, now: float) -> None:
        """Forget pictures that are too old, or too many, by Trio's clock."""
        while self._pictures and (
            self.bytes > self.max_bytes or now - self._pictures[0].accepted_at > self.seconds
        ):
            self.bytes -= self._pictures.popleft().size

    def give_up(self) -> None:
        """Hold nothing, for want of room."""
        self.clear()
        for listener in [*self.listeners]:
            listener.give_up()

    def end(self) -> None:
        """Forget all: the stream is over, or gets another owner."""
        self.clear()
        for listener in [*self.listeners]:
            listener.end()

    def clear(self) -> None:
        self._pictures.clear()
        self.bytes = 0


MakeRing = Callable[[str], PictureRing | None]
"""The ring for a stream of this id; None if nobody wants one."""


def shows_jpeg(message: VideoFrame, codec: Codec) -> bool:
    """Whether the data of a frame begins as a JPEG picture does, without decoding it."""
    if isinstance(message, MalformedFrame):
        return False
    if codec.binary:
        head = bytes(memoryview(message.data)[: _MAX_MSGPACK_HEAD + len(JPEG_BEGINNING)])
        return head.find(JPEG_BEGINNING) in range(2, _MAX_MSGPACK_HEAD + 1)
    return bytes(memoryview(message.data)[: len(_JPEG_AS_JSON)]) == _JPEG_AS_JSON
