"""Checks what the types of a message cannot express."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import force_setattr

from relay.protocol.encoding import Encoding
from relay.protocol.invalid_message import (
    MAX_NON_FRAME_BYTES,
    NON_FRAME_TOO_LARGE,
    InvalidMessage,
)
from relay.protocol.large_frame import MIN_REST_BYTES, is_too_much
from relay.protocol.messages import (
    NO_METADATA,
    Ack,
    Alert,
    Auth,
    ClientMessage,
    ErrorCode,
    Metadata,
    Register,
    VideoFrame,
)
from relay.protocol.metadata import NUL, InvalidMetadata, decode_metadata
from relay.protocol.spelling import whole


def checked(message: ClientMessage, encoding: Encoding, *, large: bool) -> ClientMessage:
    """Return a message, other than a frame, if it also keeps the rules that types cannot express;
    raises `InvalidMessage`."""
    if isinstance(message.id, float):
        _check_id(message, message.id)
    if large:
        raise _refuse(message, NON_FRAME_TOO_LARGE)
    if isinstance(message, Register | Alert) and isinstance(message.metadata, msgspec.Raw):
        force_setattr(message, "metadata", _metadata(message, message.metadata, encoding))
    if isinstance(message, Register) and message.layers is not None:
        ids = [layer.id for layer in message.layers]
        if len(set(ids)) < len(ids):
            raise _refuse(message, "Expected each `id` once - at `$.layers`")
    if isinstance(message, Alert):
        _check_storable(message)
        if isinstance(message.timestamp, float):
            force_setattr(message, "timestamp", whole(message.timestamp))
    return message


def checked_frame(frame: VideoFrame, payload: bytes, encoding: Encoding) -> VideoFrame:
    """Return a frame if it keeps these rules, apart from its payload if that is much larger;
    raises `InvalidMessage`."""
    if isinstance(frame.id, float):
        _check_id(frame, frame.id)
    if isinstance(frame.timestamp, float):
        force_setattr(frame, "timestamp", whole(frame.timestamp))
    data = memoryview(frame.data)
    if data[0] not in encoding.data:
        raise _refuse(frame, f"Expected `{encoding.data_type}` - at `$.data`")
    if frame.metadata is not NO_METADATA and _metadata(frame, frame.metadata, encoding) is None:
        force_setattr(frame, "metadata", NO_METADATA)
    rest = len(payload) - data.nbytes
    if rest > MIN_REST_BYTES and is_too_much(rest - len(memoryview(frame.metadata)), payload):
        # Its fields are views: others, that nobody knows, would be kept as long as the frame.
        force_setattr(frame, "data", frame.data.copy())
        force_setattr(frame, "metadata", frame.metadata.copy())
    return frame


def _check_id(message: ClientMessage, number: float) -> None:
    """Refuse an id that is not finite, and turn a whole one into an integer."""
    if not math.isfinite(number):
        raise InvalidMessage(
            ErrorCode.INVALID_MESSAGE,
            "Invalid message: Number not finite - at `$.id`",
            stream_id=getattr(message, "stream_id", None),
            is_auth=isinstance(message, Auth),
            is_ack=isinstance(message, Ack),
        )
    force_setattr(message, "id", whole(number))


def _metadata(message: ClientMessage, raw: msgspec.Raw, encoding: Encoding) -> Metadata | None:
    """Decode a field that was left encoded until now; None if it is null."""
    content = memoryview(raw)
    if content.nbytes > MAX_NON_FRAME_BYTES:
        raise _refuse(message, f"Longer than {MAX_NON_FRAME_BYTES} bytes - at `$.metadata`")
    if content[0] in encoding.null:
        return None
    if content[0] not in encoding.object:
        raise _refuse(message, "Expected `object | null` - at `$.metadata`")
    try:
        return decode_metadata(raw, encoding)
    except InvalidMetadata as problem:
        raise _refuse(message, f"{problem} - at `$.metadata`") from None


def _refuse(message: ClientMessage, why: str) -> InvalidMessage:
    return InvalidMessage(
        ErrorCode.INVALID_MESSAGE,
        f"Invalid message: {why}",
        message.id,
        getattr(message, "stream_id", None),
    )


def _check_storable(alert: Alert) -> None:
    for name, text in (("message", alert.message), ("alertKey", alert.alert_key)):
        if text and NUL in text:
            raise _refuse(alert, f"Contains U+0000 - at `$.{name}`")
