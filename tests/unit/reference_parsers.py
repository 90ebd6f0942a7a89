"""Three parsers of what a client sends: ours, wsproto, and the protocol of `websockets`.

Each takes whole frames and returns for each what it received, or the close code that it refuses the
frame with. After a refusal or a Close it is given no further frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

import attrs
import wsproto
from attrs import define, field, frozen
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode
from websockets.protocol import Protocol as TheirProtocol
from websockets.protocol import Side, State
from wsproto import events

from relay.transport.framing.frame_parser import FrameParser, ParsedFrames
from relay.transport.framing.unmask import unmask
from relay.transport.link import Buffer
from relay.transport.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    TOKEN_BYTES,
)

LIMIT = 400
"""Bytes of the largest message, small so that it is often met."""
CONTROLS = (CLOSE, PING, PONG)
KNOWN = (CONTINUATION, TEXT, BINARY, *CONTROLS)

Received = tuple[int, bytes]
"""An opcode, and the payload of the control frame or of the whole message."""


@frozen
class Sent:
    """What a client sends as a frame, valid or not."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    reserved: int = 0
    masked: bool = True
    form: int = 0
    """The bits that its length is written in; 0 for the fewest possible."""
    mask: bytes = b"\x8a\x01\xfe\x37"
    claimed: int | None = None
    """The length in the header, where it is not that of the payload."""

    @property
    def size(self) -> int:
        return len(self.payload) if self.claimed is None else self.claimed

    @property
    def shortest_form(self) -> int:
        return 7 if self.size < 126 else 16 if self.size < 1 << 16 else 64

    @property
    def wasteful(self) -> bool:
        return self.form > self.shortest_form

    @property
    def bytes(self) -> bytes:
        first = self.opcode | self.reserved << 4 | (FIN if self.final else 0)
        bit = 0x80 if self.masked else 0
        form = max(self.form, self.shortest_form)
        if form == 7:
            header = bytes((first, bit | self.size))
        elif form == 16:
            header = struct.pack("!BBH", first, bit | 126, self.size)
        else:
            header = struct.pack("!BBQ", first, bit | 127, self.size)
        return header + (
            self.mask + unmask(self.payload, self.mask) if self.masked else self.payload
        )


@frozen
class Outcome:
    """What a parser makes of one frame."""

    received: tuple[Received, ...] = ()
    refused: int | None = None
    """The close code that it refuses the frame with."""


class ReferenceParser(Protocol):
    def parse(self, sent: Sent) -> Outcome: ...


def pong(payload: Buffer) -> list[Received]:
    """A pong that another parser received, if ours tells of it too: with room for a token."""
    return [(PONG, bytes(payload))] if len(payload) == TOKEN_BYTES else []


def arrive(parser: FrameParser, data: bytes) -> Iterator[ParsedFrames]:
    """Give bytes that arrive together to a parser as a stream does."""
    while data:
        if parser.missing is None:
            rest, data = memoryview(bytearray(data)), b""
            while rest:
                parsed = parser.feed(rest)
                yield parsed
                rest = parsed.rest
        else:
            count = min(len(parser.missing), len(data))
            parser.missing[:count] = data[:count]
            data = data[count:]
            parsed = parser.fill(count)
            assert not parsed.rest
            yield parsed


@define(eq=False)
class Ours:
    """Our frame parser."""

    limit: int = LIMIT
    pieces: int = 1 << 30
    """Bytes that arrive at a time."""
    parser: FrameParser = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.parser = FrameParser(self.limit)

    @property
    def fragments(self) -> bytes | None:
        """The fragments so far of an unfinished message."""
        fragments = self.parser._fragments
        return None if fragments is None else bytes(fragments)

    @property
    def text(self) -> bool:
        """Whether the unfinished message is text."""
        return self.parser._opcode == TEXT

    def parse(self, sent: Sent) -> Outcome:
        received: list[Received] = []
        refused = None
        data = sent.bytes
        while data:
            piece, data = data[: self.pieces], data[self.pieces :]
            for parsed in arrive(self.parser, piece):
                received += [(each.opcode, each.payload) for each in parsed.messages]
                received += [(PONG, token.to_bytes(TOKEN_BYTES)) for token in parsed.answers]
                for control in parsed.controls:
                    received.append((control[0] & 15, bytes(unmask(control[6:], control[2:6]))))
                if parsed.breach is not None:
                    refused = parsed.breach.ending.value.code
        return Outcome(tuple(received), refused)

    def but(self, **settings: int) -> Ours:
        """Make another one that has read the same, between two frames."""
        other = attrs.evolve(self, **settings)
        other.parser._opcode = self.parser._opcode
        if (fragments := self.fragments) is not None:
            other.parser._fragments = bytearray(fragments)
        return other


@define(eq=False)
class Wsproto:
    """wsproto as a server. It has no limit on the size."""

    connection: wsproto.connection.Connection = field(
        factory=lambda: wsproto.connection.Connection(wsproto.ConnectionType.SERVER)
    )
    _parts: list[bytes] = field(factory=list)

    def parse(self, sent: Sent) -> Outcome:
        received: list[Received] = []
        self.connection.receive_data(sent.bytes)
        for event in self.connection.events():
            match event:
                case events.TextMessage(data=text):
                    received += self._join(TEXT, text.encode(), last=event.message_finished)
                case events.BytesMessage(data=data):
                    received += self._join(BINARY, bytes(data), last=event.message_finished)
                case events.Ping(payload=payload):
                    received.append((PING, bytes(payload)))
                case events.Pong(payload=payload):
                    received += pong(payload)
                case events.CloseConnection(code=code, reason=reason):
                    # A Close of the peer changes the state; one for a breach is only proposed.
                    if self.connection.state is wsproto.connection.ConnectionState.OPEN:
                        return Outcome(tuple(received), int(code))
                    payload = b"" if code == 1005 else struct.pack("!H", code)
                    received.append((CLOSE, payload + (reason or "").encode()))
        return Outcome(tuple(received))

    def _join(self, opcode: int, part: bytes, *, last: bool) -> list[Received]:
        self._parts.append(part)
        if not last:
            return []
        whole = b"".join(self._parts)
        self._parts.clear()
        return [(opcode, whole)]


@define(eq=False)
class Websockets:
    """The protocol of `websockets` as a server. UTF-8 is checked where fragments are joined, which
    the library does in its connections."""

    limit: int = LIMIT
    protocol: TheirProtocol = field(init=False)
    _opcode: int = TEXT
    _parts: list[bytes] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.protocol = TheirProtocol(Side.SERVER, state=State.OPEN, max_size=self.limit)

    def parse(self, sent: Sent) -> Outcome:
        received: list[Received] = []
        self.protocol.receive_data(sent.bytes)
        for event in self.protocol.events_received():
            assert isinstance(event, TheirFrame)
            if event.opcode is Opcode.PONG:
                received += pong(event.data)
                continue
            if event.opcode in CONTROLS:
                received.append((int(event.opcode), bytes(event.data)))
                continue
            if event.opcode is not Opcode.CONT:
                self._opcode = int(event.opcode)
            self._parts.append(bytes(event.data))
            if event.fin:
                whole = b"".join(self._parts)
                self._parts.clear()
                try:
                    whole.decode() if self._opcode == TEXT else None
                except UnicodeDecodeError:
                    return Outcome(tuple(received), 1007)
                received.append((self._opcode, whole))
        if self.protocol.parser_exc is not None:
            assert self.protocol.close_sent is not None
            return Outcome(tuple(received), int(self.protocol.close_sent.code))
        return Outcome(tuple(received))
