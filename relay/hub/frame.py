"""A frame that was accepted, encoded once however many watch. Floor 2."""

from __future__ import annotations

from functools import cached_property

from attrs import field, frozen

from relay.protocol.codec import encode_frame
from relay.protocol.messages import VideoFrame, VideoFrameHead
from relay.transport import wire


@frozen(slots=False, eq=False)
class Frame:
    """One frame of one stream."""

    stream_id: str
    seq: int
    received_at: int
    """The relay's clock, ms since the Unix epoch."""
    message: VideoFrame = field(repr=False)

    @cached_property
    def json(self) -> bytes:
        """The `video-frame` message as one whole WebSocket frame."""
        message = self.message
        head = VideoFrameHead(
            stream_id=self.stream_id,
            seq=self.seq,
            timestamp=self.received_at if message.timestamp is None else message.timestamp,
            received_at=self.received_at,
            keyframe=message.keyframe,
            metadata=message.metadata,
        )
        return wire.frame(wire.TEXT, *encode_frame(head, message.data))
