"""Every message of the protocol as a class.

These are not attrs classes, because `msgspec.Struct` turns Python names into the camelCase names of
the wire, and tells messages apart by their `type`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from relay.model.alerts.alert_picture import PictureState

STREAM_ID_RULE = "1 to 128 characters of A-Z a-z 0-9 - . _ :"
# In Python, and not in JSON Schema, `$` also matches before a last newline.
STREAM_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}(?!\n)$"
STREAM_PREFIX_PATTERN = r"^[A-Za-z0-9._:-]{1,128}\*(?!\n)$"
"""A prefix of stream ids, in grants and scopes."""
StreamId = Annotated[str, Meta(pattern=STREAM_ID_PATTERN, description=STREAM_ID_RULE)]
MAX_SAFE_INTEGER = 2**53
"""JavaScript represents every whole number up to this one."""
_RANGE = Meta(ge=0, le=MAX_SAFE_INTEGER)
Milliseconds = Annotated[int, _RANGE] | Annotated[float, _RANGE]
_RATE = Meta(gt=0, le=1000)
Position = Annotated[int, _RANGE]
"""The `alertId` of the last alert that a client has, or 0."""
LAYER_ID_RULE = "1 to 16 characters of A-Z a-z 0-9 - . _"
LayerId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,16}(?!\n)$", description=LAYER_ID_RULE)]
Width = Annotated[int, Meta(ge=1, le=65535)]
"""Pixels."""
PageSize = Annotated[int, Meta(ge=1, le=1000)]
RequestId = Annotated[str, Meta(max_length=256)] | int | float | None
MAX_ALERT_LENGTH = 8192
"""Characters of the message of an alert."""
Severity = Literal["low", "medium", "high", "critical"]
SuccessCode = Literal[
    "AUTHENTICATED",
    "REGISTERED",
    "SUBSCRIBED",
    "UNSUBSCRIBED",
    "ALERT_ACCEPTED",
    "ALERTS_REPLAYED",
    "STREAMS",
]
Metadata = dict[str, Any]
if TYPE_CHECKING:
    CheckedMetadata = Metadata | None
else:
    CheckedMetadata = Raw
    """Left encoded by the decoder; `rules.checked` decodes it, once it is known to be small."""
NO_METADATA = Raw()
"""The metadata of a frame without metadata."""

AUTH = "auth"
ACK = "ack"
REGISTER = "register"
VIDEO_FRAME = "video-frame"
ALERT = "alert"


class ErrorCode(StrEnum):
    """Why a request was refused, or a connection ended."""

    AUTH_REQUIRED = "AUTH_REQUIRED"
    AUTH_FAILED = "AUTH_FAILED"
    AUTH_TIMEOUT = "AUTH_TIMEOUT"
    AUTH_UNAVAILABLE = "AUTH_UNAVAILABLE"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_REVOKED = "SESSION_REVOKED"
    UNAUTHORIZED = "UNAUTHORIZED"
    NOT_REGISTERED = "NOT_REGISTERED"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNKNOWN_MESSAGE_TYPE = "UNKNOWN_MESSAGE_TYPE"
    RATE_LIMITED = "RATE_LIMITED"
    TOO_MANY_CONNECTIONS = "TOO_MANY_CONNECTIONS"
    SUPERSEDED = "SUPERSEDED"
    TOO_SLOW = "TOO_SLOW"
    IDLE_TIMEOUT = "IDLE_TIMEOUT"
    MESSAGE_TOO_BIG = "MESSAGE_TOO_BIG"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    ENDED_BY_OPERATOR = "ENDED_BY_OPERATOR"
    INTERNAL_ERROR = "INTERNAL_ERROR"


class StreamStatus(StrEnum):
    """What a stream does: registered, frames flowing, gone."""

    ONLINE = "online"
    STREAMING = "streaming"
    OFFLINE = "offline"


def now_ms() -> int:
    """Read the server's clock: milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def milliseconds(moment: datetime) -> int:
    """Milliseconds since the Unix epoch, as messages have them."""
    return int(moment.timestamp() * 1000)


class Request(Struct, frozen=True, rename="camel", tag_field="type", kw_only=True):
    """What a client sends; `id` is echoed by the reply."""

    id: RequestId = None


class Auth(Request, frozen=True, kw_only=True, tag=AUTH):
    token: Annotated[str, Meta(min_length=1, max_length=8192)]
    parts: bool | None = None
    """Whether this client takes a long message as several `part` messages."""
    progress_interval: Annotated[int, Meta(ge=1, le=3_600_000)] | None = None
    """Milliseconds after which it is told again that its own long message arrives."""

    def __repr__(self) -> str:
        return "Auth(token=…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("token", ...)]


class Layer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A size in which the producer sends each picture, or some of them."""

    id: LayerId
    width: Width | None = None


class Register(Request, frozen=True, kw_only=True, tag=REGISTER):
    stream_id: StreamId | None = None
    client_type: str | None = None
    produces: list[str] | None = None
    consumes: list[str] | None = None
    metadata: CheckedMetadata = None
    window: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Asks for `received` messages."""
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=4)] | None = None
    """The cheapest first."""
    alerts_after: Position | None = None


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    stream_id: StreamId
    consumes: list[str]
    client_type: str | None = None
    produces: list[str] | None = None
    policy: Literal["latest", "lossless"] = "latest"
    max_fps: Annotated[int, Meta(ge=1, le=1000)] | Annotated[float, _RATE] | None = None
    window: Annotated[int, Meta(ge=1, le=1024)] | None = None
    max_width: Width | None = None
    """No wider layer than this, if there is one that is not."""
    layer: LayerId | None = None
    """The only layer that the consumer wants; while it does not flow, the nearest smaller."""
    alerts_after: Position | None = None
    """Replay the alerts behind this one before any live one is sent."""


class Ack(Request, frozen=True, kw_only=True, tag=ACK):
    stream_id: StreamId
    seq: Annotated[int, _RANGE]
    epoch: Annotated[int, _RANGE] | None = None
    """The epoch of the stream that `seq` counts in; without it, the current one."""


class AlertsSince(Request, frozen=True, kw_only=True, tag="alerts-since"):
    stream_id: StreamId | None = None
    after: Position | None = None
    last: PageSize | None = None
    limit: PageSize | None = None


class Streams(Request, frozen=True, kw_only=True, tag="streams"):
    after: StreamId | None = None
    """The last id of the page before."""
    limit: PageSize | None = None


class Unsubscribe(Request, frozen=True, kw_only=True, tag="unsubscribe"):
    stream_id: StreamId


class VideoFrame(Request, frozen=True, kw_only=True, tag=VIDEO_FRAME):
    data: Raw
    """The encoded field, unchanged: in JSON base64 with its quotes."""
    stream_id: StreamId | None = None
    timestamp: Milliseconds | None = None
    keyframe: bool | None = None
    discardable: bool | None = None
    """Of a frame that is no keyframe: whether nothing builds on it."""
    layer: LayerId | None = None
    metadata: Raw = field(default_factory=NO_METADATA.copy)  # which is itself, without a call
    """An encoded object, passed on unchanged."""


class MalformedFrame(VideoFrame, frozen=True, kw_only=True, tag=VIDEO_FRAME):
    """A frame that came as JSON, and whose data is not base64. Viewers get it as it came."""


class Alert(Request, frozen=True, kw_only=True, tag=ALERT):
    stream_id: StreamId
    severity: Severity
    message: Annotated[str, Meta(max_length=MAX_ALERT_LENGTH)]
    metadata: CheckedMetadata = None
    timestamp: Milliseconds | None = None
    frame: bool | None = None
    """Whether the picture of this moment is to be kept with the alert."""
    alert_key: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    traceparent: str | None = None
    """With `tracestate`, of W3C Trace Context: the sender's span. Ignored unless it is valid."""
    tracestate: str | None = None


ClientMessage = (
    Auth | Register | Subscribe | Unsubscribe | Ack | VideoFrame | Alert | AlertsSince | Streams
)


class Event(
    Struct, frozen=True, rename="camel", tag_field="type", kw_only=True, omit_defaults=True
):
    """What the server sends."""


class VideoFrameEvent(Event, frozen=True, kw_only=True, tag=VIDEO_FRAME):
    stream_id: str
    seq: int
    timestamp: int | float
    """The timestamp of the producer, or the time of receipt."""
    received_at: int
    keyframe: bool | None = None
    discardable: bool | None = None
    layer: str | None = None
    """Of a stream with layers, and of what the relay made smaller."""
    metadata: Raw | None = None
    data: Raw
    """Unchanged where producer and consumer use the same encoding."""


class CarriedFrame(Event, frozen=True, kw_only=True, tag=VIDEO_FRAME):
    """A `video-frame` on its way between two nodes, whose contents are passed on unread."""

    stream_id: str
    seq: Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)]
    timestamp: int | float
    received_at: int
    keyframe: bool | None = None
    discardable: bool | None = None
    layer: str | None = None
    metadata: Raw = field(default_factory=NO_METADATA.copy)
    data: Raw


class AlertEvent(Event, frozen=True, kw_only=True, tag=ALERT):
    alert_id: int
    stream_id: str
    severity: str
    message: str
    metadata: Mapping[str, Any] | None = None
    timestamp: int
    still: PictureState | None = None
    """What became of the picture of that moment; None if none was to be kept."""
    clip: PictureState | None = None
    """The same of the pictures around that moment."""


class Status(Event, frozen=True, kw_only=True, tag="status"):
    stream_id: str
    epoch: int
    """The epoch of the stream that `seq` counts in; 0 while the stream has none."""
    status: StreamStatus
    consumers: int | None = None
    layers: list[str] | None = None
    """To a producer with layers: those that somebody needs."""
    standby: float | None = None
    """To a producer that nobody watches: the pictures a second that are wanted all the same."""
    metadata: Metadata | None = None
    """Sent to consumers when an epoch begins or the metadata changes; `{}` when it is gone."""
    timestamp: int = field(default_factory=now_ms)


class StreamEntry(Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """One stream in the reply to `streams`."""

    stream_id: str
    status: StreamStatus
    metadata: Metadata | None = None


class Success(Event, frozen=True, kw_only=True, tag="success"):
    code: SuccessCode
    message: str
    id: RequestId = None
    stream_id: str | None = None
    epoch: int | None = None
    metadata: Metadata | None = None
    user_id: str | None = None
    session_id: str | None = None
    expires_at: int | None = None
    alert_id: int | None = None
    more: bool | None = None
    streams: list[StreamEntry] | None = None
    window: int | None = None
    """Repeated by a relay that sends `received` messages."""
    layers: list[str] | None = None
    """Repeated by a relay that knows of layers."""
    timestamp: int = field(default_factory=now_ms)


class Error(Event, frozen=True, kw_only=True, tag="error"):
    code: ErrorCode
    message: str
    id: RequestId = None
    stream_id: str | None = None
    retry_after: int | None = None
    timestamp: int = field(default_factory=now_ms)


class Notice(Event, frozen=True, kw_only=True, tag="notice"):
    code: Literal["SERVER_RESTARTING", "SESSION_EXPIRING", "KEYFRAME_WANTED"]
    stream_id: str | None = None
    """The stream of which a keyframe is wanted."""
    retry_after: int | None = None
    expires_at: int | None = None
    timestamp: int = field(default_factory=now_ms)


class Part(Event, frozen=True, kw_only=True, tag="part"):
    """A piece of a long message, which is read when all pieces are there, put together."""

    stream_id: str | None = None
    """Of the frame that it is a piece of; None for other messages."""
    index: int
    """From 1."""
    count: int
    data: Any
    """In JSON a piece of its text, in MessagePack some of its bytes."""


class MessageProgress(Event, frozen=True, kw_only=True, tag="progress"):
    """A long message of the client is arriving."""

    received: int
    """Bytes of it, so far."""
    timestamp: int = field(default_factory=now_ms)


ServerMessage = VideoFrameEvent | AlertEvent | Status | Success | Error | Notice


class FramesReceived(Event, frozen=True, kw_only=True, tag="received"):
    """Frames of the producer have come, so that it can tell what its link carries."""

    stream_id: str
    frames: int
    """`video-frame` messages of the connection so far, whatever became of them."""
    timestamp: int = field(default_factory=now_ms)


SlowLinkMessage = Part | MessageProgress | FramesReceived
"""What the server sends only to clients that ask for it."""
