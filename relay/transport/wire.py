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


def frame(opcode: int, *pieces: Buffer) -> bytes:
    """A whole unmasked frame, as a server sends it, copied together once."""
    size = sum(map(len, pieces))
    if size < 126:
        header = bytes((FIN | opcode, size))
    elif size < 1 << 16:
        header = struct.pack("!BBH", FIN | opcode, 126, size)
    else:
        header = struct.pack("!BBQ", FIN | opcode, 127, size)
    return b"".join((header, *pieces))
