"""Messages from and to the two encodings. Floor 0.

A message is validated once, here: behind `decode` every field has its type and its bounds. Both
encodings have the same schema but for `data`, which is base64 in JSON and bytes in MessagePack.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import msgspec
from attrs import define, frozen

from relay.protocol.messages import (
    Alert,
    ClientMessage,
    ErrorCode,
    RequestId,
    ServerMessage,
    StreamId,
    VideoFrame,
    VideoFrameHead,
)

Piece = bytes | memoryview

MAX_DEPTH = 32
"""How deep `metadata` may nest. Less than any decoder or encoder on its way gives up at."""

LONGEST_EXPLANATION = 300
"""Characters; msgspec repeats an unknown type in full, however long it is."""

LARGEST_BUT_FRAMES = 64 * 1024
"""Bytes of a message that is no frame: `metadata` is kept, stored, and given to many."""

NUL = "\0"
"""The one character that Postgres stores in no text."""

_BIN = (0xC4, 0xC5, 0xC6)
"""How bytes begin in MessagePack."""


@define(eq=False)
class InvalidMessage(Exception):
    """A message that cannot be taken, with all that the reply needs."""

    code: ErrorCode
    message: str
    request_id: RequestId = None
    stream_id: str | None = None


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

    def encode_frame(self, head: VideoFrameHead, data: Piece) -> tuple[Piece, ...]:
        """A `video-frame` in pieces; `data`, encoded, is among them uncopied."""

    def pack(self, content: bytes) -> bytes:
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
        return _decode(self._decoder, payload)

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_frame(self, head: VideoFrameHead, data: Piece) -> tuple[Piece, ...]:
        return self._encoder.encode(head)[:-1] + b',"data":', data, b"}"

    def pack(self, content: bytes) -> bytes:
        return self._encoder.encode(content)

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
        return _decode(self._decoder, payload)

    def encode(self, message: ServerMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_frame(self, head: VideoFrameHead, data: Piece) -> tuple[Piece, ...]:
        encoded = self._encoder.encode(head)
        # A map of up to 15 entries says how many they are in its first byte.
        return bytes((encoded[0] + 1,)), encoded[1:] + b"\xa4data", data

    def pack(self, content: bytes) -> bytes:
        return self._encoder.encode(content)

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        return msgspec.msgpack.decode(data, type=bytes)


JSON = JsonCodec()
MSGPACK = MsgpackCodec()
CODECS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
"""By subprotocol."""


class _Reference(msgspec.Struct, rename="camel"):
    """What of a broken message may still be named in the reply."""

    id: Any = None
    stream_id: Any = None


_AnyDecoder = msgspec.json.Decoder[ClientMessage] | msgspec.msgpack.Decoder[ClientMessage]


def _decode(decoder: _AnyDecoder, payload: bytes) -> ClientMessage:
    # That text is UTF-8 was seen to before: what is not looked at here goes unchecked.
    binary = isinstance(decoder, msgspec.msgpack.Decoder)
    try:
        message = decoder.decode(payload)
    except msgspec.ValidationError as problem:
        raise _explain(payload, problem, binary=binary) from None
    except msgspec.DecodeError as problem:
        name = "MessagePack" if binary else "JSON"
        text = f"Not valid {name}: {problem}"
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, text) from None
    except UnicodeDecodeError:
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "The message is not UTF-8") from None
    except RecursionError:
        text = "The message nests too deep"
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, text) from None
    if isinstance(message, VideoFrame):
        first = memoryview(message.data)[0]
        if (first not in _BIN) if binary else (first != ord('"')):
            expected = "bytes" if binary else "str"
            raise _refuse(message, f"Expected `{expected}` - at `$.data`")
    elif len(payload) > LARGEST_BUT_FRAMES:
        raise _refuse(message, f"Only a video-frame may be over {LARGEST_BUT_FRAMES} bytes")
    metadata = getattr(message, "metadata", None)
    if metadata:
        _check_metadata(message, metadata)
    if isinstance(message, Alert):
        _check_storable(message)
    return message


def _explain(payload: bytes, problem: msgspec.ValidationError, *, binary: bool) -> InvalidMessage:
    explanation = str(problem)
    code = ErrorCode.INVALID_MESSAGE
    if explanation.startswith("Invalid value") and explanation.endswith("`$.type`"):
        code = ErrorCode.UNKNOWN_MESSAGE_TYPE
    if len(explanation) > LONGEST_EXPLANATION:
        explanation = f"{explanation[:LONGEST_EXPLANATION]}… - at {explanation.rpartition(' ')[2]}"
    try:
        reference = (msgspec.msgpack if binary else msgspec.json).decode(payload, type=_Reference)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reference = _Reference()
    return InvalidMessage(
        code,
        f"Invalid message: {explanation}",
        _if_valid(reference.id, RequestId),
        _if_valid(reference.stream_id, StreamId),
    )


def _if_valid(value: Any, kind: Any) -> Any:
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
