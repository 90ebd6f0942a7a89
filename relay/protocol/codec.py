"""Messages from and to the two encodings. Floor 0.

A message is validated once, here: behind `decode` every field has its type and its bounds. Both
encodings have the same schema but for `data`, which is base64 in JSON and bytes in MessagePack.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar, Protocol, get_args

import msgspec
from attrs import define, frozen

from relay.protocol.messages import (
    AUTH,
    NO_METADATA,
    STREAM_ID_PATTERN,
    STREAM_ID_RULE,
    Alert,
    Auth,
    ClientMessage,
    ErrorCode,
    RequestId,
    ServerMessage,
    StreamId,
    Streams,
    VideoFrame,
)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a message that it cannot take."""

MAX_DEPTH = 32
"""How deep `metadata` may nest. Less than any decoder or encoder on its way gives up at."""

LONGEST_EXPLANATION = 300
"""Characters; msgspec repeats an unknown type in full, however long it is."""

LARGEST_BUT_FRAMES = 64 * 1024
"""Bytes of a message that is no frame, and of a frame's `metadata`: it is kept, stored, and given
to many."""

TYPES = {kind.__struct_config__.tag for kind in get_args(ClientMessage)}

NOT_MATCHING = f"`str` matching regex {STREAM_ID_PATTERN!r}"
"""How msgspec says that a stream id is none."""

NUL = "\0"
"""The one character that Postgres stores in no text."""


ONLY_FRAMES = f"Only a video-frame may be over {LARGEST_BUT_FRAMES} bytes"

LargeMessage = VideoFrame | Streams
"""What may be large, and what builds nothing however large it is: with a second type in the union
a message has to say that it is a frame."""


@frozen
class Beginnings:
    """How the fields of a frame that are passed on as they came begin in an encoding."""

    data_type: str
    data: bytes
    """With one of these bytes `data` begins."""
    object: bytes
    """And with one of these a `metadata` that is there; else it has to be `null`."""
    null: bytes


JSON_BEGINNINGS = Beginnings("str", b'"', b"{", b"n")
MSGPACK_BEGINNINGS = Beginnings(
    "bytes", b"\xc4\xc5\xc6", bytes((*range(0x80, 0x90), 0xDE, 0xDF)), b"\xc0"
)


@define(eq=False)
class InvalidMessage(Exception):
    """A message that cannot be taken, with all that the reply needs."""

    code: ErrorCode
    message: str
    request_id: RequestId = None
    stream_id: str | None = None
    is_auth: bool = False
    """Whether it says that it is an `auth`."""


class Codec(Protocol):
    """One encoding, in both directions."""

    @property
    def subprotocol(self) -> str: ...

    @property
    def binary(self) -> bool:
        """Whether its messages are binary WebSocket messages, or text."""

    def decode(self, payload: bytes) -> ClientMessage:
        """Read one client message; `InvalidMessage` names the field and why."""

    def encode(self, message: ServerMessage) -> bytes:
        """A whole server message."""

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        """The same from an offset to the end of a buffer, which grows as needed."""

    def pack(self, content: Any) -> msgspec.Raw:
        """Bytes as a `data` field, or an object as `metadata`."""

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        """The bytes in a `data` field; None when it holds none."""

    def read(self, field: msgspec.Raw) -> Any:
        """What stands in a field; `msgspec.DecodeError` and others when it cannot be read."""


@frozen(eq=False)
class JsonCodec:
    """JSON in text messages."""

    subprotocol: str = "relay.v1.json"
    binary: bool = False
    _decoder: ClassVar[msgspec.json.Decoder[ClientMessage]] = msgspec.json.Decoder(ClientMessage)
    _large: ClassVar[msgspec.json.Decoder[LargeMessage]] = msgspec.json.Decoder(LargeMessage)
    _encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder()

    def decode(self, payload: bytes) -> ClientMessage:
        large = len(payload) > LARGEST_BUT_FRAMES
        try:
            message = (self._large if large else self._decoder).decode(payload)
        except UNREADABLE as problem:
            raise _explain(payload, problem, msgspec.json, "JSON") from None
        return _checked(message, self, JSON_BEGINNINGS, large=large)

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        self._encoder.encode_into(message, buffer, offset)

    def pack(self, content: Any) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(content))

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        try:
            return msgspec.json.decode(data, type=bytes)
        except msgspec.DecodeError:
            return None

    def read(self, field: msgspec.Raw) -> Any:
        return msgspec.json.decode(field)


@frozen(eq=False)
class MsgpackCodec:
    """MessagePack in binary messages: a quarter less than base64."""

    subprotocol: str = "relay.v1.msgpack"
    binary: bool = True
    _decoder: ClassVar[msgspec.msgpack.Decoder[ClientMessage]] = msgspec.msgpack.Decoder(
        ClientMessage
    )
    _large: ClassVar[msgspec.msgpack.Decoder[LargeMessage]] = msgspec.msgpack.Decoder(LargeMessage)
    _encoder: ClassVar[msgspec.msgpack.Encoder] = msgspec.msgpack.Encoder()

    def decode(self, payload: bytes) -> ClientMessage:
        large = len(payload) > LARGEST_BUT_FRAMES
        try:
            message = (self._large if large else self._decoder).decode(payload)
        except UNREADABLE as problem:
            raise _explain(payload, problem, msgspec.msgpack, "MessagePack") from None
        return _checked(message, self, MSGPACK_BEGINNINGS, large=large)

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        self._encoder.encode_into(message, buffer, offset)

    def pack(self, content: Any) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(content))

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        return msgspec.msgpack.decode(data, type=bytes)

    def read(self, field: msgspec.Raw) -> Any:
        return msgspec.msgpack.decode(field)


JSON = JsonCodec()
MSGPACK = MsgpackCodec()
CODECS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
"""By subprotocol."""


class _Reference(msgspec.Struct, rename="camel"):
    """What of a broken message may still be named in the reply."""

    type: Any = None
    id: Any = None
    stream_id: Any = None


class _LargeReference(msgspec.Struct, rename="camel"):
    """The same of a large one, of which nothing is built but what may be named."""

    type: str | None = None
    id: RequestId = None
    stream_id: StreamId | None = None


class _Type(msgspec.Struct):
    """What a large message says that it is, whatever else it says."""

    type: str | None = None


def _checked(
    message: ClientMessage, codec: Codec, beginnings: Beginnings, *, large: bool
) -> ClientMessage:
    """The message, when what the types do not say is true of it, too; else `InvalidMessage`."""
    if isinstance(message.id, float) and not math.isfinite(message.id):
        raise InvalidMessage(
            ErrorCode.INVALID_MESSAGE,
            "Invalid message: Number not finite - at `$.id`",
            stream_id=getattr(message, "stream_id", None),
            is_auth=isinstance(message, Auth),
        )
    if isinstance(message, VideoFrame):
        if memoryview(message.data)[0] not in beginnings.data:
            raise _refuse(message, f"Expected `{beginnings.data_type}` - at `$.data`")
        if message.metadata is not NO_METADATA:
            return _check_frame_metadata(message, codec, beginnings)
        return message
    if large:
        raise _refuse(message, ONLY_FRAMES)
    metadata = getattr(message, "metadata", None)
    if metadata:
        _check_metadata(message, metadata)
    if isinstance(message, Alert):
        _check_storable(message)
    return message


def _check_frame_metadata(frame: VideoFrame, codec: Codec, beginnings: Beginnings) -> VideoFrame:
    """Look at the metadata before it is passed on as it came, and let go of what that builds."""
    raw = memoryview(frame.metadata)
    if raw.nbytes > LARGEST_BUT_FRAMES:
        raise _refuse(frame, f"Longer than {LARGEST_BUT_FRAMES} bytes - at `$.metadata`")
    if raw[0] in beginnings.null:
        return msgspec.structs.replace(frame, metadata=NO_METADATA)
    if raw[0] not in beginnings.object:
        raise _refuse(frame, "Expected `object | null` - at `$.metadata`")
    try:
        metadata = codec.read(frame.metadata)
    except msgspec.ValidationError as problem:
        why = str(problem).partition(" - at ")[0]
    except UNREADABLE:
        why = "Cannot be read"
    else:
        _check_metadata(frame, metadata)
        return frame
    raise _refuse(frame, f"{why} - at `$.metadata`")


def _explain(payload: bytes, problem: Exception, format_: ModuleType, name: str) -> InvalidMessage:
    # That text is UTF-8 was seen to before: what is not looked at here goes unchecked.
    code = ErrorCode.INVALID_MESSAGE
    match problem:
        case msgspec.ValidationError():
            explanation = str(problem).replace(NOT_MATCHING, STREAM_ID_RULE)
        case msgspec.DecodeError():
            return InvalidMessage(code, f"Not valid {name}: {problem}")
        case UnicodeDecodeError():
            return InvalidMessage(code, "The message is not UTF-8")
        case _:
            return InvalidMessage(code, "The message nests too deep")
    large = len(payload) > LARGEST_BUT_FRAMES
    reference = _Reference()
    for kind in (_LargeReference, _Type) if large else (_Reference,):
        try:
            found = format_.decode(payload, type=kind)
        except UNREADABLE:
            continue
        reference = _Reference(*map(found.__getattribute__, kind.__struct_fields__))
        break
    if explanation.startswith("Invalid value") and explanation.endswith("`$.type`"):
        if large and reference.type in TYPES:
            explanation = ONLY_FRAMES
        else:
            code = ErrorCode.UNKNOWN_MESSAGE_TYPE
    if len(explanation) > LONGEST_EXPLANATION:
        explanation = f"{explanation[:LONGEST_EXPLANATION]}… - at {explanation.rpartition(' ')[2]}"
    return InvalidMessage(
        code,
        f"Invalid message: {explanation}",
        _if_valid(reference.id, RequestId),
        _if_valid(reference.stream_id, StreamId),
        is_auth=reference.type == AUTH,
    )


def _if_valid(value: Any, kind: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _refuse(message: ClientMessage, why: str) -> InvalidMessage:
    return InvalidMessage(
        ErrorCode.INVALID_MESSAGE,
        f"Invalid message: {why}",
        message.id,
        getattr(message, "stream_id", None),
    )


def _check_metadata(message: ClientMessage, metadata: dict[str, Any]) -> None:
    level: list[Any] = [metadata]
    for _ in range(MAX_DEPTH):
        inside: list[Any] = []
        for parent in level:
            values = parent
            if isinstance(parent, dict):
                values = [*parent.values()]
                if wrong := next(filter(None, map(_why_no_key, parent)), None):
                    raise _refuse(message, f"{wrong} - at `$.metadata`")
            for value in values:
                if isinstance(value, dict | list):
                    inside.append(value)
                elif wrong := _why_not(value):
                    raise _refuse(message, f"{wrong} - at `$.metadata`")
        if not inside:
            break
        level = inside
    else:
        raise _refuse(message, f"Nests deeper than {MAX_DEPTH} - at `$.metadata`")


def _why_no_key(key: Any) -> str | None:
    return _why_not(key) if isinstance(key, str) else "Expected `str` as key"


def _why_not(value: Any) -> str | None:
    """Why a value cannot be passed on in both encodings, or be stored."""
    match value:
        case str():
            return "Contains U+0000" if NUL in value else None
        case bool() | None:
            return None
        case int():
            return None if -(2**63) <= value < 2**64 else "Integer value out of range"
        case float():
            return None if math.isfinite(value) else "Number not finite"
        case _:
            return f"No `{type(value).__name__}` may be here"


def _check_storable(alert: Alert) -> None:
    for name, text in (("message", alert.message), ("alertKey", alert.alert_key)):
        if text and NUL in text:
            raise _refuse(alert, f"Contains U+0000 - at `$.{name}`")
