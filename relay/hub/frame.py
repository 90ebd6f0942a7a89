"""Frames that were accepted, encoded once for each encoding however many watch. Floor 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from attrs import define, field, frozen

from relay.protocol.codec import Codec
from relay.protocol.messages import NO_METADATA, VideoFrame, VideoFrameEvent
from relay.transport import wire
from relay.transport.link import Buffer

BURST = 64 * 1024
"""Bytes of frames that came at once which are written at once."""


@define(eq=False)
class Frame:
    """One frame of one stream."""

    stream_id: str
    seq: int
    received_at: int
    """The relay's clock, ms since the Unix epoch."""
    accepted_at: float
    """The same moment by Trio's clock."""
    message: VideoFrame = field(repr=False)
    codec: Codec = field(repr=False)
    """In which it came."""
    baseless: bool = False
    """Whether it builds on a frame that never came here."""
    _encoded: dict[Codec, Buffer | None] = field(factory=dict, repr=False)

    @property
    def keyframe(self) -> bool | None:
        """None where each frame stands for itself."""
        return self.message.keyframe

    @property
    def is_delta(self) -> bool:
        """Whether it builds on the frame before."""
        return self.message.keyframe is False

    def encoded(self, codec: Codec) -> Buffer | None:
        """The `video-frame` message as one whole WebSocket frame.

        None when its data cannot be put into this encoding: it came as JSON and is not base64.
        """
        try:
            return self._encoded[codec]
        except KeyError:
            encoded = self._encoded[codec] = self._encode(codec)
            return encoded

    @property
    def unencodable(self) -> bool:
        """Whether it was asked for in an encoding that it cannot be put into."""
        return None in self._encoded.values()

    def _encode(self, codec: Codec) -> Buffer | None:
        message, data = self.message, self.message.data
        metadata = None if message.metadata is NO_METADATA else message.metadata
        if codec is not self.codec:
            content = self.codec.unpack(data)
            if content is None:
                return None
            data = codec.pack(content)
            if metadata is not None:
                metadata = codec.pack(self.codec.read(metadata))
        event = VideoFrameEvent(
            stream_id=self.stream_id,
            seq=self.seq,
            timestamp=self.received_at if message.timestamp is None else message.timestamp,
            received_at=self.received_at,
            keyframe=message.keyframe,
            metadata=metadata,
            data=data,
        )
        buffer = bytearray(wire.LONGEST_HEADER)
        codec.encode_into(event, buffer, wire.LONGEST_HEADER)
        return wire.frame_around(wire.BINARY if codec.binary else wire.TEXT, buffer)


@frozen
class Row:
    """Frames one behind the other in one buffer."""

    whole: Buffer
    ends: Sequence[int]
    """Where each frame ends."""


@define(eq=False)
class Burst:
    """Frames of one stream that came at once, small enough to be written at once."""

    frames: Sequence[Frame]
    _encoded: dict[Codec, Row | None] = field(factory=dict, repr=False)

    @property
    def baseless(self) -> bool:
        """Whether it begins with deltas that build on a frame that never came here."""
        return self.frames[0].baseless

    def encoded(self, codec: Codec) -> Row | None:
        """All of them; None when one cannot be put into this encoding."""
        try:
            return self._encoded[codec]
        except KeyError:
            row = self._encoded[codec] = self._encode(codec)
            return row

    def _encode(self, codec: Codec) -> Row | None:
        pieces: list[Buffer] = []
        for frame in self.frames:
            encoded = frame.encoded(codec)
            if encoded is None:
                return None
            pieces.append(encoded)
        return Row(b"".join(pieces), list(accumulate(map(len, pieces))))


def bursts(messages: Sequence[VideoFrame]) -> Iterator[Sequence[VideoFrame]]:
    """What may be written at once: single frames, and small ones in a row."""
    start = size = 0
    for end, message in enumerate(messages):
        more = memoryview(message.data).nbytes
        if end > start and size + more > BURST:
            yield messages[start:end]
            start, size = end, 0
        size += more
    if messages:
        yield messages[start:]
