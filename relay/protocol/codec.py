"""Messages from and to the two encodings. Floor 0.

A message is validated once, here: behind `decode` every field has its type and its bounds. Both
encodings have the same schema but for `data`, which is base64 in JSON and bytes in MessagePack.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, ClassVar, Protocol

import msgspec
from attrs import define, frozen

from relay.protocol.messages import (
    AUTH,
    STREAM_ID_PATTERN,
    STREAM_ID_RULE,
    Alert,
    Auth,
    ClientMessage,
    ErrorCode,
    RequestId,
    ServerMessage,
    StreamId,
    VideoFrame,
)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a message that it cannot take."""

MAX_DEPTH = 32
"""How deep `metadata` may nest. Less than any decoder or encoder on its way gives up at."""

LONGEST_EXPLANATION = 300
"""Characters; msgspec repeats an unknown type in full, however long it is."""

LARGEST_BUT_FRAMES = 64 * 1024
"""Bytes of a message that is no frame: `metadata` is kept, stored, and given to many."""

NOT_MATCHING = f"`str` matching regex {STREAM_ID_PATTERN!r}"
"""How msgspec says that a stream id is none."""

NUL = "\0"
"""The one character that Postgres stores in no text."""


@frozen
class DataKind:
    """What `data` has to be in an encoding."""

    name: str
    first_bytes: bytes
    """With one of which it begins."""


JSON_TEXT, MSGPACK_BYTES = DataKind("str", b'"'), DataKind("bytes", b"\xc4\xc5\xc6")


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

    def pack(self, content: bytes) -> msgspec.Raw:
        """Bytes as a `data` field."""

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        """The bytes in a `data` field; None when it holds none."""


@frozen(eq=False)
class JsonCodec:
    """JSON in text messages."""

    subprotocol: str = "relay.v1.json"
    binary: bool = False
    _decoder: ClassVar[msgspec.json.Decoder[ClientMessage]] = msgspec.json.Decoder(ClientMessage)
    _encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder()

    def decode(self, payload: bytes) -> ClientMessage:
        try:
            message = self._decoder.decode(payload)
        except UNREADABLE as problem:
            raise _explain(payload, problem, msgspec.json, "JSON") from None
        _check(message, payload, JSON_TEXT)
        return message

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        self._encoder.encode_into(message, buffer, offset)

    def pack(self, content: bytes) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(content))

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        try:
            return msgspec.json.decode(data, type=bytes)
        except msgspec.DecodeError:
            return None


@frozen(eq=False)
class MsgpackCodec:
    """MessagePack in binary messages: a quarter less than base64."""

    subprotocol: str = "relay.v1.msgpack"
    binary: bool = True
    _decoder: ClassVar[msgspec.msgpack.Decoder[ClientMessage]] = msgspec.msgpack.Decoder(
        ClientMessage
    )
    _encoder: ClassVar[msgspec.msgpack.Encoder] = msgspec.msgpack.Encoder()

    def decode(self, payload: bytes) -> ClientMessage:
        try:
            message = self._decoder.decode(payload)
        except UNREADABLE as problem:
            raise _explain(payload, problem, msgspec.msgpack, "MessagePack") from None
        _check(message, payload, MSGPACK_BYTES)
        return message

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        self._encoder.encode_into(message, buffer, offset)

    def pack(self, content: bytes) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(content))

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        return msgspec.msgpack.decode(data, type=bytes)


JSON = JsonCodec()
MSGPACK = MsgpackCodec()
CODECS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
"""By subprotocol."""


class _Reference(msgspec.Struct, rename="camel"):
    """What of a broken message may still be named in the reply."""

    type: Any = None
    id: Any = None
    stream_id: Any = None


def _check(message: ClientMessage, payload: bytes, data: DataKind) -> None:
    """What the types do not say; `InvalidMessage`."""
    if isinstance(message.id, float) and not math.isfinite(message.id):
        raise InvalidMessage(
            ErrorCode.INVALID_MESSAGE,
            "Invalid message: Number not finite - at `$.id`",
            stream_id=getattr(message, "stream_id", None),
            is_auth=isinstance(message, Auth),
        )
    if isinstance(message, VideoFrame):
        if memoryview(message.data)[0] not in data.first_bytes:
            raise _refuse(message, f"Expected `{data.name}` - at `$.data`")
        metadata = message.metadata
    elif len(payload) > LARGEST_BUT_FRAMES:
        raise _refuse(message, f"Only a video-frame may be over {LARGEST_BUT_FRAMES} bytes")
    else:
        metadata = getattr(message, "metadata", None)
    if metadata:
        _check_metadata(message, metadata)
    if isinstance(message, Alert):
        _check_storable(message)


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
    if explanation.startswith("Invalid value") and explanation.endswith("`$.type`"):
        code = ErrorCode.UNKNOWN_MESSAGE_TYPE
    if len(explanation) > LONGEST_EXPLANATION:
        explanation = f"{explanation[:LONGEST_EXPLANATION]}… - at {explanation.rpartition(' ')[2]}"
    try:
        reference = format_.decode(payload, type=_Reference)
    except UNREADABLE:
        reference = _Reference()
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
