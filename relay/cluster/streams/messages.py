"""What nodes say to each other over a link: MessagePack in binary WebSocket messages.

Frames go as viewers get them, as `video-frame` in the encoding of their producer, so one that
came as JSON is a text message.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from relay.protocol.encoding import JSON, MSGPACK, Encoding
from relay.protocol.messages import CarriedFrame, Layer, StreamStatus
from relay.protocol.spelling import DECODE_ERRORS
from relay.transport.link import Buffer

LINK_PROTOCOL_VERSION = 1
"""Nodes of another version are not talked to."""
MAX_VIEWERS_OF_NODE, MAX_NEEDED_LAYERS, MAX_PATH = 10**9, 16, 64
"""What may stand in a message; more is none."""


class LinkMessage(
    msgspec.Struct, frozen=True, rename="camel", tag_field="type", kw_only=True, omit_defaults=True
):
    """What one node tells another."""


class Hello(LinkMessage, frozen=True, tag="hello"):
    """The first message of both sides."""

    version: int


class Carry(LinkMessage, frozen=True, tag="carry"):
    """An edge wants a stream, or its viewers need something else than before."""

    stream_id: str
    request: int
    """Of this edge for this stream: what answers it says so, and what answers an earlier one is of
    no use any more."""
    viewers: Annotated[int, Meta(ge=1, le=MAX_VIEWERS_OF_NODE)]
    layers: Annotated[list[str], Meta(max_length=MAX_NEEDED_LAYERS)] = []
    """The ids of the layers that they need."""
    lossless: bool = False
    """Whether one of them must miss no frame."""
    was_sent: bool = False
    """Whether another node that has the stream has sent it here; see `Moved`."""


class DropStream(LinkMessage, frozen=True, tag="drop"):
    """An edge has no viewers of a stream any more."""

    stream_id: str


class WantKeyframe(LinkMessage, frozen=True, tag="keyframe-wanted"):
    """A viewer there can use nothing else."""

    stream_id: str


class Unencodable(LinkMessage, frozen=True, tag="unencodable"):
    """Viewers there miss frames whose data is not base64."""

    stream_id: str


class TakeStream(LinkMessage, frozen=True, tag="take"):
    """This node has the stream now."""

    stream_id: str
    term: int


class LinkQuestion(LinkMessage, frozen=True, tag="ask"):
    """A question to the other node; see `LinkAnswer`."""

    id: int
    what: str
    max_bytes: int
    """The answer leaves out what would make it longer."""


class Ping(LinkMessage, frozen=True, tag="ping"):
    """Sent by the edge now and then, so that both sides notice a link that is dead."""


class StreamState(LinkMessage, frozen=True, tag="stream"):
    """The origin describes a stream that the edge asked for, now and after each change."""

    stream_id: str
    request: int
    """As in `Carry`."""
    term: int
    epoch: int
    status: StreamStatus
    owner_id: str
    seq: int
    """Of the last picture before this message."""
    path: Annotated[list[str], Meta(min_length=1, max_length=MAX_PATH)]
    """The nodes that it comes through, the origin first."""
    metadata: dict[str, Any] | None = None
    layers: list[Layer] | None = None


class Moved(LinkMessage, frozen=True, tag="moved"):
    """The stream is not here, or not any more."""

    stream_id: str
    request: int
    """As in `Carry`."""
    term: int = 0
    node_id: str | None = None
    """Where it is; None: ask the directory."""
    carries: bool = False
    """Whether that node only carries it: there are enough edges here."""


class Taken(LinkMessage, frozen=True, tag="taken"):
    """The answer to `take`."""

    stream_id: str
    term: int
    epoch: int = 0
    """0: there was no such stream here."""
    seq: int = 0
    status: StreamStatus = StreamStatus.ONLINE
    keyframe: bytes = b""
    """The message of the last frame that stands for itself, unless there is none or it is large. As
    a message of its own it could be taken for a frame of a later epoch."""


class Lost(LinkMessage, frozen=True, tag="lost"):
    """More waited for the link than may, so that a viewer who must miss no frame has missed one."""

    stream_id: str


class Leaving(LinkMessage, frozen=True, tag="leaving"):
    """The origin is about to end; its streams will be elsewhere."""


class Pong(LinkMessage, frozen=True, tag="pong"):
    """The answer to `ping`."""


class LinkAnswer(LinkMessage, frozen=True, tag="answer"):
    """The answer to `ask`."""

    id: int
    body: bytes


FromEdge = (
    Hello | Carry | DropStream | WantKeyframe | Unencodable | TakeStream | LinkQuestion | Ping
)
FromOrigin = Hello | StreamState | Moved | Taken | Lost | Leaving | Pong | LinkAnswer | CarriedFrame

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_from_edge: msgspec.msgpack.Decoder[FromEdge] = msgspec.msgpack.Decoder(FromEdge)
_from_origin: msgspec.msgpack.Decoder[FromOrigin] = msgspec.msgpack.Decoder(FromOrigin)
_text_frame = msgspec.json.Decoder(CarriedFrame)


class NoLinkMessage(Exception):
    """What came over a link is none of its messages."""


def decode_from_edge(payload: Buffer) -> FromEdge:
    """Raises `NoLinkMessage`, as the others."""
    try:
        return _from_edge.decode(payload)
    except DECODE_ERRORS as problem:
        raise NoLinkMessage from problem


def decode_from_origin(payload: Buffer) -> FromOrigin:
    """A message, or a frame of a producer that sends MessagePack."""
    try:
        message = _from_origin.decode(payload)
    except DECODE_ERRORS as problem:
        raise NoLinkMessage from problem
    if isinstance(message, CarriedFrame):
        _check_contents(message, MSGPACK)
    return message


def decode_text_frame(payload: Buffer) -> CarriedFrame:
    """A frame of a producer that sends JSON."""
    try:
        frame = _text_frame.decode(payload)
    except DECODE_ERRORS as problem:
        raise NoLinkMessage from problem
    _check_contents(frame, JSON)
    return frame


def _check_contents(frame: CarriedFrame, encoding: Encoding) -> None:
    """Check what is left encoded, as far as its first byte tells."""
    data, metadata = memoryview(frame.data), memoryview(frame.metadata)
    if data[0] not in encoding.data or (metadata and metadata[0] not in encoding.object):
        raise NoLinkMessage
