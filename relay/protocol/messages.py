"""Every message of the protocol as a class. Floor 0.

Wire names are camelCase and Python names are not, and a message is told apart by its `type`: both
are what `msgspec.Struct` does by itself, which is why these are not attrs classes.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

STREAM_ID_RULE = "1 to 128 characters of A-Z a-z 0-9 - . _ :"
# Before a last newline `$` matches in Python, and not in JSON Schema.
STREAM_ID_PATTERN = r"^[A-Za-z0-9._:-]{1,128}(?!\n)$"
StreamId = Annotated[str, Meta(pattern=STREAM_ID_PATTERN, description=STREAM_ID_RULE)]
LARGEST_NUMBER = 2**53
"""Up to here JavaScript has every whole number."""
_RANGE = Meta(ge=0, le=LARGEST_NUMBER)
Milliseconds = Annotated[int, _RANGE] | Annotated[float, _RANGE]
_RATE = Meta(gt=0, le=1000)
Position = Annotated[int, _RANGE]
"""The `alertId` of the last alert that a client has; 0 for none."""
RequestId = Annotated[str, Meta(max_length=256)] | int | float | None
LONGEST_ALERT = 8192
"""Characters of its message."""
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
NO_METADATA = Raw()
"""Of a frame that has none."""

AUTH = "auth"
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
    INTERNAL_ERROR = "INTERNAL_ERROR"


class StreamStatus(StrEnum):
    """What a stream does: registered, frames flowing, gone."""

    ONLINE = "online"
    STREAMING = "streaming"
    OFFLINE = "offline"


def now_ms() -> int:
    """The server's clock: ms since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Request(Struct, frozen=True, rename="camel", tag_field="type", kw_only=True):
    """What a client sends; `id` is echoed by the reply."""

    id: RequestId = None


class Auth(Request, frozen=True, kw_only=True, tag=AUTH):
    token: Annotated[str, Meta(min_length=1, max_length=8192)]

    def __repr__(self) -> str:
        return "Auth(token=…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("token", ...)]


class Register(Request, frozen=True, kw_only=True, tag=REGISTER):
    stream_id: StreamId | None = None
    client_type: str | None = None
    produces: list[str] | None = None
    consumes: list[str] | None = None
    metadata: Metadata | None = None
    alerts_after: Position | None = None


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    stream_id: StreamId
    consumes: list[str]
    client_type: str | None = None
    produces: list[str] | None = None
    policy: Literal["latest", "lossless"] = "latest"
    max_fps: Annotated[int, Meta(ge=1, le=1000)] | Annotated[float, _RATE] | None = None
    window: Annotated[int, Meta(ge=1, le=1024)] | None = None
    alerts_after: Position | None = None
    """Replay the alerts behind this one before any live one comes."""


class Ack(Request, frozen=True, kw_only=True, tag="ack"):
    stream_id: StreamId
    seq: Annotated[int, _RANGE]
    epoch: Annotated[int, _RANGE] | None = None
    """In which life of the stream; without it, the one that is now."""


class AlertsSince(Request, frozen=True, kw_only=True, tag="alerts-since"):
    stream_id: StreamId | None = None
    after: Position | None = None
    last: Annotated[int, Meta(ge=1, le=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] | None = None


class Streams(Request, frozen=True, kw_only=True, tag="streams"):
    pass


class Unsubscribe(Request, frozen=True, kw_only=True, tag="unsubscribe"):
    stream_id: StreamId


class VideoFrame(Request, frozen=True, kw_only=True, tag=VIDEO_FRAME):
    data: Raw
    """Base64 in JSON, exactly as it came, quotes included."""
    stream_id: StreamId | None = None
    timestamp: Milliseconds | None = None
    keyframe: bool | None = None
    metadata: Raw = field(default_factory=lambda: NO_METADATA)
    """An object, as it came: passed on without being taken apart."""


class Alert(Request, frozen=True, kw_only=True, tag=ALERT):
    stream_id: StreamId
    severity: Severity
    message: Annotated[str, Meta(max_length=LONGEST_ALERT)]
    metadata: Metadata | None = None
    timestamp: Milliseconds | None = None
    alert_key: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


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
    """The producer's, or the time of receipt."""
    received_at: int
    keyframe: bool | None = None
    metadata: Raw | None = None
    data: Raw
    """As it came, where producer and consumer speak the same encoding."""


class AlertEvent(Event, frozen=True, kw_only=True, tag=ALERT):
    alert_id: int
    stream_id: str
    severity: str
    message: str
    metadata: Metadata | None = None
    timestamp: int


class Status(Event, frozen=True, kw_only=True, tag="status"):
    stream_id: str
    epoch: int
    """Which life of the stream `seq` counts in; 0 while there is none to see."""
    status: StreamStatus
    consumers: int | None = None
    metadata: Metadata | None = None
    """To consumers, when a life begins and when another is registered; `{}` for none any more."""
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
    timestamp: int = field(default_factory=now_ms)


class Error(Event, frozen=True, kw_only=True, tag="error"):
    code: ErrorCode
    message: str
    id: RequestId = None
    stream_id: str | None = None
    retry_after: int | None = None
    timestamp: int = field(default_factory=now_ms)


class Notice(Event, frozen=True, kw_only=True, tag="notice"):
    code: Literal["SERVER_RESTARTING", "SESSION_EXPIRING"]
    retry_after: int | None = None
    expires_at: int | None = None
    timestamp: int = field(default_factory=now_ms)


ServerMessage = VideoFrameEvent | AlertEvent | Status | Success | Error | Notice
