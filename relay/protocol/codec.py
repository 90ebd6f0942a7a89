"""Messages from and to JSON text. Floor 0.

A message is validated once, here: behind `decode` every field has its type and its bounds.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define

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

MAX_DEPTH = 32
"""How deep `metadata` may nest. Less than any decoder or encoder on its way gives up at."""

LONGEST_EXPLANATION = 300
"""Characters; msgspec repeats an unknown type in full, however long it is."""

NUL = "\0"
"""The one character that Postgres stores in no text."""


@define(eq=False)
class InvalidMessage(Exception):
    """A message that cannot be taken, with all that the reply needs."""

    code: ErrorCode
    message: str
    request_id: RequestId = None
    stream_id: str | None = None


class _Reference(msgspec.Struct, rename="camel"):
    """What of a broken message may still be named in the reply."""

    id: Any = None
    stream_id: Any = None


_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_reference = msgspec.json.Decoder(_Reference)
_encoder = msgspec.json.Encoder()


def decode(text: bytes) -> ClientMessage:
    """Read one client message; `InvalidMessage` names the field and why.

    The text is to be UTF-8: what is not looked at here, `data` and unknown fields, goes unchecked.
    """
    try:
        message = _decoder.decode(text)
    except msgspec.ValidationError as problem:
        raise _explain(text, problem) from None
    except msgspec.DecodeError as problem:
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, f"Not valid JSON: {problem}") from None
    except UnicodeDecodeError:
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "The message is not UTF-8") from None
    except RecursionError:
        raise InvalidMessage(ErrorCode.INVALID_MESSAGE, "The message nests too deep") from None
    if isinstance(message, VideoFrame) and memoryview(message.data)[0] != ord('"'):
        raise _refuse(message, "Expected `str` - at `$.data`")
    metadata = getattr(message, "metadata", None)
    if metadata:
        _check_metadata(message, metadata)
    if isinstance(message, Alert):
        _check_storable(message)
    return message


def encode(message: ServerMessage) -> bytes:
    """The JSON text of a server message."""
    return _encoder.encode(message)


def encode_frame(head: VideoFrameHead, data: msgspec.Raw) -> tuple[bytes, memoryview, bytes]:
    """The JSON text of a `video-frame` in pieces, `data` among them uncopied."""
    return _encoder.encode(head)[:-1] + b',"data":', memoryview(data), b"}"


def _explain(text: bytes, problem: msgspec.ValidationError) -> InvalidMessage:
    explanation = str(problem)
    code = ErrorCode.INVALID_MESSAGE
    if explanation.startswith("Invalid value") and explanation.endswith("`$.type`"):
        code = ErrorCode.UNKNOWN_MESSAGE_TYPE
    if len(explanation) > LONGEST_EXPLANATION:
        explanation = f"{explanation[:LONGEST_EXPLANATION]}… - at {explanation.rpartition(' ')[2]}"
    try:
        reference = _reference.decode(text)
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
                values = [*parent, *parent.values()]
            for value in values:
                if isinstance(value, dict | list):
                    inside.append(value)
                elif isinstance(value, str) and NUL in value:
                    raise _refuse(message, "Contains U+0000 - at `$.metadata`")
        if not inside:
            break
        level = inside
    else:
        raise _refuse(message, f"Nests deeper than {MAX_DEPTH} - at `$.metadata`")


def _check_storable(alert: Alert) -> None:
    for name, text in (("message", alert.message), ("alertKey", alert.alert_key)):
        if text and NUL in text:
            raise _refuse(alert, f"Contains U+0000 - at `$.{name}`")
