"""What comes over a link from an origin: frames as viewers get them, and messages."""

from __future__ import annotations

from attrs import frozen

from relay.cluster.streams.messages import FromOrigin, decode_from_origin, decode_text_frame
from relay.hub.frames.frame import Frame
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.layers.layer_set import LayerSet, PictureLayer
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec
from relay.protocol.messages import CarriedFrame
from relay.transport.wire import MAX_HEADER_BYTES

OPEN_BRACE = 0x7B
"""How a frame in JSON begins, and no MessagePack."""


@frozen
class ArrivedFrame:
    """A frame as it came over a link."""

    event: CarriedFrame
    codec: Codec
    buffer: bytearray
    """The message, behind `MAX_HEADER_BYTES` of room."""

    def frame(self, account: FrameAccount, layers: LayerSet | None) -> Frame:
        """The frame, whose bytes this account counts."""
        layer, layer_id = None, self.event.layer
        if layer_id is not None and layers is not None:
            index = layers.index_of(layer_id)
            layer = None if index is None else PictureLayer(index, layer_id)
        return Frame.carried(self.event, self.codec, self.buffer, account, layer)


def read_from_origin(payload: memoryview) -> FromOrigin | ArrivedFrame:
    buffer = bytearray(MAX_HEADER_BYTES) + payload
    view = memoryview(buffer)[MAX_HEADER_BYTES:]
    in_json = len(view) > 0 and view[0] == OPEN_BRACE
    message = decode_text_frame(view) if in_json else decode_from_origin(view)
    if isinstance(message, CarriedFrame):
        return ArrivedFrame(message, JSON_CODEC if in_json else MSGPACK_CODEC, buffer)
    return message


def stream_of(message: FromOrigin | ArrivedFrame) -> str | None:
    """The stream whose frame it is; None for what is no frame."""
    return message.event.stream_id if isinstance(message, ArrivedFrame) else None
