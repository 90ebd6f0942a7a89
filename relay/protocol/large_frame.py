"""Decodes a large frame in steps, between which other tasks may go on. No I/O.

A decoder looks at each byte, and at each value that it skips: of 16 MiB with an unknown field full
of arrays that takes a tenth of a second. So of a large message all but `data` has to be small, and
`data` is read in slices.
"""

from __future__ import annotations

import re
import secrets
from binascii import b2a_base64
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial

import msgspec
from msgspec import Raw
from msgspec.structs import asdict, force_setattr

from relay.protocol.base64_text import ALPHABET, standard_base64_in_steps
from relay.protocol.invalid_message import MAX_NON_FRAME_BYTES, InvalidMessage
from relay.protocol.messages import (
    ClientMessage,
    ErrorCode,
    MalformedFrame,
    RequestId,
    VideoFrame,
)
from relay.protocol.metadata import MAX_DEPTH, MAX_VALUES, InvalidMetadata, check_msgpack

MIN_LARGE_BYTES = 256 * 1024
"""Messages above this are decoded in steps."""
MAX_BESIDE_BYTES = 128 * 1024
"""Bytes before the data of a large frame in JSON, and behind it."""
MAX_VALUES_OF_FRAME = 2 * MAX_VALUES
"""Values in a large frame in MessagePack, unknown fields included."""
MIN_REST_BYTES = 512
"""Bytes beside its data and metadata that a frame may always keep of its message."""
STEP_BYTES = 256 * 1024
MAX_QUOTES = 64
"""Escaped quotes that are looked at in search of the beginning and the end of the data."""

TOO_MUCH_BESIDE_DATA = (
    f"Only a video-frame may be over {MAX_NON_FRAME_BYTES} bytes, and beside its `data` it may have"
    f" {MAX_BESIDE_BYTES} at most"
)
NOT_BASE64 = "Invalid message: data is not base64 - at `$.data`"
TOO_MANY_IN_FRAME = f"Invalid message: More than {MAX_VALUES_OF_FRAME} values, or too deep"

EDGE_BYTES = 1024
_JSON_ID = re.compile(rb'[{,]\s*+"id"\s*+:\s*+("[^"\\]{0,256}"|-?[0-9]{1,15}(?=[\s,}]))')
_MSGPACK_ID = re.compile(rb"\xa2id([\x00-\x7f]|[\xa0-\xbf][ -~]{0,31})", re.DOTALL)

_BLANKS = b" \t\r\n"
_PLACEHOLDER = b'"%s"' % secrets.token_urlsafe(16).encode()
"""Stands for the data while the rest is decoded; nobody can guess it."""
_UNPRINTABLE = bytes((*range(32), ord("\\")))
_PRINTABLE = bytes(set(range(256)) - set(_UNPRINTABLE))

Steps = Generator[None, None, ClientMessage]
"""Returns the message; raises `InvalidMessage`."""


def decode_json_in_steps(payload: bytes, decode: Callable[[bytes], ClientMessage]) -> Steps:
    """Decode a large message; `decode` decodes it without its data."""
    start, end = _find_data(payload)
    rest = b"".join((payload[:start], _PLACEHOLDER, payload[end:]))
    yield
    frame = decode(rest)
    if not isinstance(frame, VideoFrame) or bytes(frame.data) != _PLACEHOLDER:
        raise _refuse(payload, TOO_MUCH_BESIDE_DATA)
    yield
    data = Raw(memoryview(payload)[start:end])
    if is_too_much(len(payload) - (end - start), payload):
        data = data.copy()
    if (yield from _is_standard(payload, start + 1, end - 1)):
        force_setattr(frame, "data", data)
        return frame
    standard = yield from standard_base64_in_steps(bytes(data))
    if standard is not None:
        force_setattr(frame, "data", Raw(standard))
        return frame
    for at in range(start + 1, end - 1, STEP_BYTES):
        if payload[at : min(at + STEP_BYTES, end - 1)].translate(None, _PRINTABLE):
            raise InvalidMessage(ErrorCode.INVALID_MESSAGE, NOT_BASE64, frame.id, frame.stream_id)
        yield
    return MalformedFrame(**{**asdict(frame), "data": data})


def is_too_much(rest: int, payload: bytes) -> bool:
    """Whether a frame that is a view of its message would keep too many bytes of what else is
    there: nobody counts these."""
    return rest > MIN_REST_BYTES + len(payload) // 8


def check_large_msgpack(payload: bytes) -> None:
    """Refuse a large message of many values; `InvalidMessage`."""
    try:
        check_msgpack(payload, 0, MAX_VALUES_OF_FRAME, MAX_DEPTH + 1)
    except InvalidMetadata as problem:
        if not problem.unreadable:  # else the decoder says so
            raise _refuse(payload, TOO_MANY_IN_FRAME) from None


def unpack_base64_in_steps(data: Raw) -> Generator[None, None, bytes | None]:
    """Return the bytes in a JSON string of base64; None when it holds anything else."""
    view, pieces = memoryview(data)[1:-1], []
    with suppress(msgspec.DecodeError):
        for at in range(0, len(view), STEP_BYTES):  # whole groups of four
            text = b'"%s"' % view[at : at + STEP_BYTES]
            pieces.append(msgspec.json.decode(text, type=bytes))
            yield
        return b"".join(pieces)
    return None


def pack_base64_in_steps(content: bytes) -> Generator[None, None, Raw]:
    """Encode bytes as a JSON string of base64."""
    view, pieces = memoryview(content), [b'"']
    step = STEP_BYTES // 3 * 3
    for at in range(0, len(view), step):
        pieces.append(b2a_base64(view[at : at + step], newline=False))
        yield
    return Raw(b"".join((*pieces, b'"')))


def _find_data(payload: bytes) -> tuple[int, int]:
    """Find the data of a large frame, with its quotes; `InvalidMessage`.

    It covers all but the edges of the message, so the last quote of the first edge that is not
    escaped is its first. The name before that quote tells that a text begins there: if the name
    were within another text, what precedes the data would be no valid JSON, and the decoder will
    say so.
    """
    start = _quote(payload, partial(payload.rfind, b'"', 0), MAX_BESIDE_BYTES)
    before = payload[: max(start, 0)].rstrip(_BLANKS)
    if before.endswith(b":") and before[:-1].rstrip(_BLANKS).endswith(b'"data"'):
        end = _quote(payload, lambda at: payload.find(b'"', at + 1), MAX_BESIDE_BYTES - 1)
        if 0 <= len(payload) - end <= MAX_BESIDE_BYTES:
            return start, end + 1
    raise _refuse(payload, TOO_MUCH_BESIDE_DATA)


def _quote(payload: bytes, search: Callable[[int], int], at: int) -> int:
    """Find a quote that is not escaped, or -1."""
    for _ in range(MAX_QUOTES):
        at = search(at)
        text = payload[max(at - EDGE_BYTES, 0) : max(at, 0)]
        if at < 0 or (len(text) - len(text.rstrip(b"\\"))) % 2 == 0:
            return at
    return -1


def _refuse(payload: bytes, why: str) -> InvalidMessage:
    """Refuse a message that was not decoded; its id is looked for at its beginning and its end."""
    edges = payload[:EDGE_BYTES] + b" " + payload[-EDGE_BYTES:]
    json_id, msgpack_id = _JSON_ID.search(edges), _MSGPACK_ID.search(edges)
    request_id: RequestId = None
    with suppress(msgspec.DecodeError, UnicodeError):
        if payload[:1].isspace() or payload[:1] == b"{":
            request_id = msgspec.json.decode(json_id[1], type=RequestId) if json_id else None
        elif msgpack_id:
            found = msgpack_id[1]
            request_id = msgspec.msgpack.decode(found[: 1 + (found[0] & 31)], type=RequestId)
    return InvalidMessage(ErrorCode.INVALID_MESSAGE, why, request_id)


def _is_standard(payload: bytes, start: int, end: int) -> Generator[None, None, bool]:
    """Tell whether these bytes are standard base64."""
    if (end - start) % 4:
        return False
    digits = end
    while digits > end - 2 and payload[digits - 1] == ord("="):
        digits -= 1
    for at in range(start, digits, STEP_BYTES):
        if payload[at : min(at + STEP_BYTES, digits)].translate(None, ALPHABET):
            return False
        yield
    return True
