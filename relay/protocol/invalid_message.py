"""Says why a message is invalid, and which request it was."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

import msgspec
from attrs import define
from msgspec import Raw

from relay.protocol.allowed_values import with_allowed_values
from relay.protocol.encoding import Encoding
from relay.protocol.messages import (
    ACK,
    AUTH,
    STREAM_ID_PATTERN,
    STREAM_ID_RULE,
    ClientMessage,
    ErrorCode,
    RequestId,
    StreamId,
)
from relay.protocol.spelling import DECODE_ERRORS, fields_of

MAX_EXPLANATION_LENGTH = 300
"""Characters; msgspec repeats an unknown type in full, however long it is."""

MAX_NON_FRAME_BYTES = 64 * 1024
"""The limit for messages other than frames, and for the `metadata` of a frame: these are kept,
stored, and sent to many."""

NON_FRAME_TOO_LARGE = f"Only a video-frame may be over {MAX_NON_FRAME_BYTES} bytes"

CLIENT_MESSAGE_TYPES = {kind.__struct_config__.tag: kind for kind in get_args(ClientMessage)}

STREAM_ID_MISMATCH = f"`str` matching regex {STREAM_ID_PATTERN!r}"
"""How msgspec says that a stream id is invalid."""

MAX_REPEATED_BYTES = 4096
"""Of a field that the reply may name: more than any valid one has."""

_NOT_GIVEN = Raw()

HALF_PAIR = "Half of a surrogate pair"
"""What is left of a character, an emoji for example, when a text is cut in its middle."""

SURROGATE_PROBLEM = "surrogate pair"
"""What msgspec says of one, unless it calls the message cut off."""

MAX_HALF_PAIRS = 1000
"""That are looked for in one message."""

_WHOLE_CHARACTERS = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F])*+", re.DOTALL
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STAND_IN = b"\\uf8ff"
"""A character of private use, as long as the escape that it replaces."""


@define(eq=False, repr=False)
class InvalidMessage(Exception):
    """A message is invalid. Holds all that the reply needs."""

    code: ErrorCode
    message: str
    request_id: RequestId = None
    stream_id: str | None = None
    is_auth: bool = False
    """Whether the message claims to be an `auth`."""
    is_ack: bool = False
    """Whether the message claims to be an `ack`."""


class _Fields(msgspec.Struct, rename="camel"):
    """The fields of an invalid message that the reply may name, undecoded."""

    type: Raw = _NOT_GIVEN
    id: Raw = _NOT_GIVEN
    stream_id: Raw = _NOT_GIVEN


class _Reference(msgspec.Struct):
    """The same fields, as far as they are valid."""

    type: str | None = None
    id: RequestId = None
    stream_id: StreamId | None = None


def in_words(problem: msgspec.ValidationError, kind: Any) -> str:
    """What is wrong with a field of such a message: without a regular expression, and with the
    values that it may have."""
    return with_allowed_values(str(problem).replace(STREAM_ID_MISMATCH, STREAM_ID_RULE), kind)


def explain(payload: bytes, problem: Exception, encoding: Encoding) -> InvalidMessage:
    """Say why a payload did not decode."""
    # The frame parser has checked that text is UTF-8; nothing does for the fields skipped here.
    code = ErrorCode.INVALID_MESSAGE
    match problem:
        case msgspec.ValidationError():
            reference = _reference(payload, encoding)
            explanation = in_words(problem, CLIENT_MESSAGE_TYPES.get(reference.type))
        case msgspec.DecodeError() if encoding.escapes and _SURROGATE.search(payload):
            return _explain_half_pair(payload, problem, encoding)
        case msgspec.DecodeError():
            return InvalidMessage(code, f"Not valid {encoding.name}: {problem}")
        case UnicodeDecodeError():
            return InvalidMessage(code, "The message is not UTF-8")
        case _:
            return InvalidMessage(code, "The message nests too deep")
    if explanation.startswith("Invalid value") and explanation.endswith("`$.type`"):
        if len(payload) > MAX_NON_FRAME_BYTES and reference.type in CLIENT_MESSAGE_TYPES:
            explanation = NON_FRAME_TOO_LARGE
        else:
            code = ErrorCode.UNKNOWN_MESSAGE_TYPE
    if len(explanation) > MAX_EXPLANATION_LENGTH:
        explanation = (
            f"{explanation[:MAX_EXPLANATION_LENGTH]}… - at {explanation.rpartition(' ')[2]}"
        )
    return InvalidMessage(
        code,
        f"Invalid message: {explanation}",
        reference.id,
        reference.stream_id,
        is_auth=reference.type == AUTH,
        is_ack=reference.type == ACK,
    )


def _reference(payload: bytes, encoding: Encoding) -> _Reference:
    try:
        found = encoding.format.decode(payload, type=_Fields)
    except DECODE_ERRORS:
        return _Reference()
    return _Reference(
        _if_valid(found.type, str, encoding),
        _if_valid(found.id, RequestId, encoding),
        _if_valid(found.stream_id, StreamId, encoding),
    )


def _if_valid(value: Raw, kind: Any, encoding: Encoding) -> Any:
    """Decode a field that has the right type and may be repeated; else None."""
    if not 0 < memoryview(value).nbytes <= MAX_REPEATED_BYTES:
        return None
    try:
        decoded = encoding.format.decode(value, type=kind)
    except DECODE_ERRORS:
        return None
    return None if isinstance(decoded, float) and not math.isfinite(decoded) else decoded


def _explain_half_pair(payload: bytes, problem: Exception, encoding: Encoding) -> InvalidMessage:
    """Explain a payload that does not decode and has escapes of surrogates; JSON decoders call one
    without its half a cut or malformed message."""
    marked = _replace_half_pairs(payload) if len(payload) <= MAX_NON_FRAME_BYTES else payload
    code = ErrorCode.INVALID_MESSAGE
    if marked == payload:
        half = SURROGATE_PROBLEM in str(problem)
        why = HALF_PAIR if half else f"Not valid {encoding.name}: {problem}"
        return InvalidMessage(code, why)
    try:
        fields = fields_of(marked, encoding.format)
    except DECODE_ERRORS as other:
        return InvalidMessage(code, f"Not valid {encoding.name}: {other}")
    reference = _reference(marked, encoding)
    names = [name for name, value in fields.items() if _STAND_IN in bytes(value)]
    place = f" - at `$.{names[0]}`" if names else ""
    return InvalidMessage(
        code,
        f"Invalid message: {HALF_PAIR}{place}",
        None if "id" in names else reference.id,
        reference.stream_id,
        is_auth=reference.type == AUTH,
        is_ack=reference.type == ACK,
    )


def _replace_half_pairs(payload: bytes) -> bytes:
    """Replace halves of surrogate pairs, with as many bytes."""
    pieces: list[bytes] = []
    at = 0
    for _ in range(MAX_HALF_PAIRS):
        match = _WHOLE_CHARACTERS.match(payload, at)
        assert match is not None
        end = match.end()
        pieces.append(payload[at:end])
        if not _SURROGATE.match(payload, end):
            return b"".join((*pieces, payload[end:])) if len(pieces) > 1 else payload
        pieces.append(_STAND_IN)
        at = end + len(_STAND_IN)
    return b"".join((*pieces, payload[at:]))
