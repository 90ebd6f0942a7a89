"""WebSocket frames as bytes (RFC 6455, section 5.2). Floor 1, no I/O."""

from __future__ import annotations

import struct

from relay.transport.link import Buffer

CONTINUATION, TEXT, BINARY = 0, 1, 2
CLOSE, PING, PONG = 8, 9, 10
"""Opcodes. Plain integers: they are compared for every frame."""

FIN = 0x80
RESERVED = 0x70
MASKED = 0x80
LONGEST_CONTROL = 125
LONGEST_HEADER = 10
"""Bytes, without the mask."""

_MEDIUM, _LARGE = struct.Struct("!BBH").pack, struct.Struct("!BBQ").pack


def frame(opcode: int, *pieces: Buffer) -> bytes:
    """A whole unmasked frame, as a server sends it, copied together once."""
    return b"".join((_header(opcode, sum(map(len, pieces))), *pieces))


def frame_around(opcode: int, payload: bytearray) -> memoryview:
    """The same for a payload that has `LONGEST_HEADER` bytes free before it; nothing is copied."""
    header = _header(opcode, len(payload) - LONGEST_HEADER)
    start = LONGEST_HEADER - len(header)
    payload[start:LONGEST_HEADER] = header
    return memoryview(payload)[start:]


def _header(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((FIN | opcode, size))
    if size < 1 << 16:
        return _MEDIUM(FIN | opcode, 126, size)
    return _LARGE(FIN | opcode, 127, size)
