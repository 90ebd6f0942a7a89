"""Cuts a long message into `part` messages, for clients that ask for that.

A browser shows scripts neither pings nor half a message, so it cannot tell a slow link from a dead
one. Each part is a message and a sign of life, and others may go between two parts.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.protocol.codec import Codec
from relay.protocol.messages import Part
from relay.transport import wire
from relay.transport.link import Buffer

MAX_SHORT_BYTES = 32 * 1024
"""A longer message goes in parts."""


def parts_of(codec: Codec, payload: Buffer, stream_id: str | None = None) -> Iterator[bytes]:
    """The parts of an encoded message, as WebSocket frames."""
    opcode = wire.BINARY if codec.binary else wire.TEXT
    pieces = list(wire.pieces(opcode, payload))
    for index, piece in enumerate(pieces, 1):
        data = bytes(piece) if codec.binary else str(piece, "utf-8")
        part = Part(stream_id=stream_id, index=index, count=len(pieces), data=data)
        yield wire.frame(opcode, codec.encode(part))
