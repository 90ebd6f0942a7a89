"""Decodes client messages and encodes server messages, in both encodings.

A message is validated once, here: after `decode` every field has its type and its bounds. The two
encodings have the same schema except for `data`, which is base64 in JSON and bytes in MessagePack.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, ClassVar, Protocol

import msgspec
from attrs import frozen
from msgspec.structs import force_setattr

from relay.model.json_object import JsonObject
from relay.protocol.base64_text import looks_standard, standard_base64
from relay.protocol.encoding import JSON, MSGPACK, Encoding
from relay.protocol.invalid_message import MAX_NON_FRAME_BYTES, InvalidMessage, explain
from relay.protocol.large_frame import (
    MIN_LARGE_BYTES,
    Steps,
    check_large_msgpack,
    decode_json_in_steps,
    pack_base64_in_steps,
    unpack_base64_in_steps,
)
from relay.protocol.messages import (
    ClientMessage,
    MalformedFrame,
    ServerMessage,
    SlowLinkMessage,
    Streams,
    VideoFrame,
)
from relay.protocol.metadata import MAX_DEPTH, read_json
from relay.protocol.rules import checked, checked_frame
from relay.protocol.spelling import DECODE_ERRORS, respelled

__all__ = [
    "CODECS",
    "DECODE_ERRORS",
    "JSON_CODEC",
    "MAX_DEPTH",
    "MAX_NON_FRAME_BYTES",
    "MIN_LARGE_BYTES",
    "MSGPACK_CODEC",
    "Codec",
    "InvalidMessage",
]

LargeMessage = VideoFrame | Streams
"""A frame may be large. `Streams` has no fields of which much is built, however large it is: with a
second type in the union, a message has to say that it is a frame."""

Decoder = (
    msgspec.json.Decoder[ClientMessage]
    | msgspec.json.Decoder[LargeMessage]
    | msgspec.msgpack.Decoder[ClientMessage]
    | msgspec.msgpack.Decoder[LargeMessage]
)


class Codec(Protocol):
    """One encoding, in both directions."""

    @property
    def subprotocol(self) -> str: ...

    @property
    def binary(self) -> bool:
        """Whether messages are sent as binary WebSocket messages, not as text."""

    def decode(self, payload: bytes) -> ClientMessage:
        """Decode a client message; raises `InvalidMessage`, which names the field and why."""

    def decode_in_steps(self, payload: bytes) -> Steps:
        """Do the same of a message over `MIN_LARGE_BYTES`; other tasks may go on in between."""

    def encode(self, message: ServerMessage | SlowLinkMessage) -> bytes:
        """Encode a server message."""

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        """Encode a server message into a buffer, from an offset to its new end."""

    def pack(self, content: Any) -> msgspec.Raw:
        """Encode bytes as a `data` field, or an object as `metadata`."""

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        """Return the bytes in a `data` field; None when it holds anything else."""

    def pack_in_steps(self, content: bytes) -> Generator[None, None, msgspec.Raw]:
        """Encode many bytes as a `data` field; other tasks may go on in between."""

    def unpack_in_steps(self, data: msgspec.Raw) -> Generator[None, None, bytes | None]:
        """Do what `unpack` does with a large field of a valid frame, in steps."""

    def read(self, field: msgspec.Raw) -> Any:
        """Decode a field; raises one of `DECODE_ERRORS`."""


def _as_text(value: Any) -> msgspec.Raw:
    """Stored JSON, as it is."""
    return msgspec.Raw(_stored(value).text.encode())


def _as_object(value: Any) -> dict[str, Any]:
    """Stored JSON, parsed."""
    return _stored(value).content


def _stored(value: Any) -> JsonObject:
    if not isinstance(value, JsonObject):
        raise TypeError(f"no message has a {type(value).__name__}")
    return value


@frozen(eq=False)
class JsonCodec:
    """JSON in text messages."""

    subprotocol: str = "relay.v1.json"
    binary: bool = False
    _decoder: ClassVar[msgspec.json.Decoder[ClientMessage]] = msgspec.json.Decoder(ClientMessage)
    _large: ClassVar[msgspec.json.Decoder[LargeMessage]] = msgspec.json.Decoder(LargeMessage)
    _encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder(enc_hook=_as_text)

    def decode(self, payload: bytes) -> ClientMessage:
        if len(payload) > MIN_LARGE_BYTES:
            return _to_the_end(self.decode_in_steps(payload))
        message = self._decode_fields(payload)
        if isinstance(message, VideoFrame) and not looks_standard(message.data, payload):
            return _with_standard_base64(message)
        return message

    def decode_in_steps(self, payload: bytes) -> Steps:
        return decode_json_in_steps(payload, partial(self._decode_fields, large=True))

    def _decode_fields(self, payload: bytes, *, large: bool = False) -> ClientMessage:
        large = large or len(payload) > MAX_NON_FRAME_BYTES
        decoder = self._large if large else self._decoder
        try:
            message = decoder.decode(payload)
        except DECODE_ERRORS as problem:
            message = _decode_respelled(payload, problem, decoder, JSON)
        if isinstance(message, VideoFrame):
            return checked_frame(message, payload, JSON)
        return checked(message, JSON, large=large)

    def encode(self, message: ServerMessage | SlowLinkMessage) -> bytes:
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

    def pack_in_steps(self, content: bytes) -> Generator[None, None, msgspec.Raw]:
        return pack_base64_in_steps(content)

    def unpack_in_steps(self, data: msgspec.Raw) -> Generator[None, None, bytes | None]:
        return unpack_base64_in_steps(data)

    def read(self, field: msgspec.Raw) -> Any:
        return read_json(field)


@frozen(eq=False)
class MsgpackCodec:
    """MessagePack in binary messages: a quarter smaller than base64."""

    subprotocol: str = "relay.v1.msgpack"
    binary: bool = True
    _decoder: ClassVar[msgspec.msgpack.Decoder[ClientMessage]] = msgspec.msgpack.Decoder(
        ClientMessage
    )
    _large: ClassVar[msgspec.msgpack.Decoder[LargeMessage]] = msgspec.msgpack.Decoder(LargeMessage)
    _encoder: ClassVar[msgspec.msgpack.Encoder] = msgspec.msgpack.Encoder(enc_hook=_as_object)

    def decode(self, payload: bytes) -> ClientMessage:
        large = len(payload) > MAX_NON_FRAME_BYTES
        if large and len(payload) > MIN_LARGE_BYTES:
            check_large_msgpack(payload)
        decoder = self._large if large else self._decoder
        try:
            message = decoder.decode(payload)
        except DECODE_ERRORS as problem:
            message = _decode_respelled(payload, problem, decoder, MSGPACK)
        if isinstance(message, VideoFrame):
            return checked_frame(message, payload, MSGPACK)
        return checked(message, MSGPACK, large=large)

    def decode_in_steps(self, payload: bytes) -> Steps:
        return self.decode(payload)
        yield

    def encode(self, message: ServerMessage | SlowLinkMessage) -> bytes:
        return self._encoder.encode(message)

    def encode_into(self, message: ServerMessage, buffer: bytearray, offset: int) -> None:
        self._encoder.encode_into(message, buffer, offset)

    def pack(self, content: Any) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(content))

    def unpack(self, data: msgspec.Raw) -> bytes | None:
        return msgspec.msgpack.decode(data, type=bytes)

    def pack_in_steps(self, content: bytes) -> Generator[None, None, msgspec.Raw]:
        return self.pack(content)
        yield

    def unpack_in_steps(self, data: msgspec.Raw) -> Generator[None, None, bytes | None]:
        return self.unpack(data)
        yield

    def read(self, field: msgspec.Raw) -> Any:
        return msgspec.msgpack.decode(field)


JSON_CODEC = JsonCodec()
MSGPACK_CODEC = MsgpackCodec()
CODECS: dict[str, Codec] = {codec.subprotocol: codec for codec in (JSON_CODEC, MSGPACK_CODEC)}
"""By subprotocol."""


def _decode_respelled(
    payload: bytes, problem: Exception, decoder: Decoder, encoding: Encoding
) -> ClientMessage:
    """Decode a message that may only be spelled in another way; raises `InvalidMessage`."""
    again = None
    if isinstance(problem, msgspec.ValidationError) and len(payload) <= MAX_NON_FRAME_BYTES:
        again = respelled(payload, encoding.format)
    if again is None:
        raise explain(payload, problem, encoding) from None
    try:
        return decoder.decode(again)
    except DECODE_ERRORS as other:
        raise explain(again, other, encoding) from None


def _to_the_end(steps: Steps) -> ClientMessage:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            message: ClientMessage = end.value
            return message


def _with_standard_base64(frame: VideoFrame) -> VideoFrame:
    """Return a frame that came as JSON with data that every viewer can read, or as malformed."""
    standard = standard_base64(bytes(frame.data))
    if standard is not None:
        force_setattr(frame, "data", msgspec.Raw(standard))
        force_setattr(frame, "metadata", frame.metadata.copy())  # a view, which keeps the message
        return frame
    return MalformedFrame(**msgspec.structs.asdict(frame))
