"""Builds WebSocket frames as bytes (RFC 6455, section 5.2). No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from relay.transport.link import Buffer

CONTINUATION, TEXT, BINARY = 0, 1, 2
CLOSE, PING, PONG = 8, 9, 10
"""Opcodes. They are plain integers because they are compared for every frame."""

FIN = 0x80
RESERVED_BITS = 0x70
MASKED = 0x80
MAX_CONTROL_BYTES = 125
MAX_HEADER_BYTES = 10
"""Bytes, without the mask."""
TOKEN_BYTES = 8
"""Of the payload of a ping that asks whether a frame has come, and of its pong."""
PROBE_BYTES = 2 + TOKEN_BYTES
"""Of such a ping."""

MAX_WHOLE_BYTES = 128 * 1024
"""A longer message is written in fragments: on a slow link its end may be minutes away."""
MESSAGE_PIECE_BYTES = 16 * 1024
"""Of fragments and of parts."""

_MEDIUM, _LARGE = struct.Struct("!BBH"), struct.Struct("!BBQ")
_ANSWER = struct.Struct("!2xIQ")
"""A masked pong that holds a token: the mask, and the token under it."""


def frame(opcode: int, *pieces: Buffer) -> bytes:
    """Build a whole unmasked frame, as a server sends it; copies the pieces once."""
    return b"".join((_header(opcode, sum(map(len, pieces))), *pieces))


def probe(token: int) -> bytes:
    """Build a ping whose pong says that the peer has received what went before."""
    return frame(PING, token.to_bytes(TOKEN_BYTES, "big"))


def token_of(pong: Buffer) -> int | None:
    """The token in a whole masked pong; None if it answers no probe."""
    if len(pong) != _ANSWER.size:
        return None
    mask, token = _ANSWER.unpack(pong)
    return int(token ^ (mask << 32 | mask))


def message(opcode: int, payload: Buffer, behind: Buffer = b"") -> bytes:
    """Build a data message, and put something behind it; a long one in fragments, between which
    control frames may go."""
    size = len(payload)
    if size <= MAX_WHOLE_BYTES:
        return b"".join((_header(opcode, size), payload, behind))
    cut = list(pieces(opcode, payload))
    last = len(cut) - 1
    headers = (
        _header(CONTINUATION if at else opcode, len(piece), fin=FIN if at == last else 0)
        for at, piece in enumerate(cut)
    )
    fragments = (each for pair in zip(headers, cut, strict=True) for each in pair)
    return b"".join((*fragments, behind))


def message_around(opcode: int, payload: bytearray) -> Buffer:
    """Build a data message of a payload that has `MAX_HEADER_BYTES` free in front; copies only a
    long one."""
    size = len(payload) - MAX_HEADER_BYTES
    if 126 <= size < 1 << 16:  # nearly all frames are: write it in place
        _MEDIUM.pack_into(payload, MAX_HEADER_BYTES - 4, FIN | opcode, 126, size)
        return memoryview(payload)[MAX_HEADER_BYTES - 4 :]
    if size > MAX_WHOLE_BYTES:
        return message(opcode, memoryview(payload)[MAX_HEADER_BYTES:])
    header = _header(opcode, size)
    start = MAX_HEADER_BYTES - len(header)
    payload[start:MAX_HEADER_BYTES] = header
    return memoryview(payload)[start:]


def pieces(opcode: int, payload: Buffer) -> Iterator[memoryview]:
    """Cut a payload into pieces of about `MESSAGE_PIECE_BYTES`; no character of a text is cut."""
    view, start = memoryview(payload), 0
    while start < len(view):
        end = start + MESSAGE_PIECE_BYTES
        while opcode == TEXT and end < len(view) and view[end] & 0xC0 == 0x80:
            end -= 1
        yield view[start:end]
        start = end


def end_of_frame(frames: Buffer, position: int) -> int:
    """Find the end of the unmasked frame that the byte at `position` belongs to."""
    end = 0
    while end <= position:
        length, header = frames[end + 1] & 127, 2
        if length >= 126:
            header = 4 if length == 126 else 10
            length = int.from_bytes(frames[end + 2 : end + header], "big")
        end += header + length
    return end


def _header(opcode: int, size: int, *, fin: int = FIN) -> bytes:
    if size < 126:
        return bytes((fin | opcode, size))
    if size < 1 << 16:
        return _MEDIUM.pack(fin | opcode, 126, size)
    return _LARGE.pack(fin | opcode, 127, size)
