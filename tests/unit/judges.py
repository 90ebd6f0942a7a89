"""Three readers of what a client sends: the splicer, wsproto, and the protocol of `websockets`.

Each takes whole frames and says of each what it makes of it: what it received, or the close code
that it refuses the frame with. After a refusal or a Close nothing more is asked.
"""

from __future__ import annotations

import struct
from typing import Protocol

import attrs
import wsproto
from attrs import define, field, frozen
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode
from websockets.protocol import Protocol as TheirProtocol
from websockets.protocol import Side, State
from wsproto import events

from relay.transport.splice import Splicer
from relay.transport.unmask import unmask
from relay.transport.wire import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT

LIMIT = 400
"""Bytes of the largest message, small so that it is often met."""
CONTROLS = (CLOSE, PING, PONG)
KNOWN = (CONTINUATION, TEXT, BINARY, *CONTROLS)

Received = tuple[int, bytes]
"""An opcode, and the payload of the control frame or of the whole message."""


@frozen
class Sent:
    """A frame of a client, or what calls itself one."""

    opcode: int
    payload: bytes = b""
    final: bool = True
    reserved: int = 0
    masked: bool = True
    form: int = 0
    """The bits that its length is written in; 0 for as many as it takes."""
    mask: bytes = b"\x8a\x01\xfe\x37"
    claimed: int | None = None
    """The length that the header tells, if not that of the payload."""

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
class Opinion:
    """What a reader makes of one frame."""

    received: tuple[Received, ...] = ()
    refused: int | None = None
    """With this close code."""


class Judge(Protocol):
    def judge(self, sent: Sent) -> Opinion: ...


@define(eq=False)
class Ours:
    """The splicer, given bytes as a stream gives them."""

    limit: int = LIMIT
    pieces: int = 1 << 30
    """So many bytes arrive at a time."""
    splicer: Splicer = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.splicer = Splicer(self.limit)

    @property
    def fragments(self) -> bytes | None:
        """What is there of a message of which more is to come."""
        fragments = self.splicer._fragments
        return None if fragments is None else bytes(fragments)

    @property
    def text(self) -> bool:
        """Whether that is text."""
        return self.splicer._opcode == TEXT

    def judge(self, sent: Sent) -> Opinion:
        received: list[Received] = []
        data = sent.bytes
        while data:
            piece, data = data[: self.pieces], data[self.pieces :]
            received += self._feed(piece)
        for control in self.splicer.controls:
            received.append((control[0] & 15, bytes(unmask(control[6:], control[2:6]))))
        self.splicer.controls.clear()
        fault = self.splicer.fault
        return Opinion(tuple(received), None if fault is None else fault.value.code)

    def _feed(self, data: bytes) -> list[Received]:
        received: list[Received] = []
        while data:
            missing = self.splicer.missing
            if missing is None:
                piece, data = memoryview(data), b""
            else:
                count = min(len(missing), len(data))
                missing[:count] = data[:count]
                piece, data = memoryview(self.splicer.filled(count)), data[count:]
            while piece:
                messages, piece = self.splicer.feed(piece)
                received += [(each.opcode, each.payload) for each in messages]
        return received

    def but(self, **settings: int) -> Ours:
        """Another one that has read the same, between two frames."""
        other = attrs.evolve(self, **settings)
        other.splicer._opcode = self.splicer._opcode
        if (fragments := self.fragments) is not None:
            other.splicer._fragments = bytearray(fragments)
        return other


@define(eq=False)
class Wsproto:
    """wsproto as a server. It has no largest size."""

    connection: wsproto.connection.Connection = field(
        factory=lambda: wsproto.connection.Connection(wsproto.ConnectionType.SERVER)
    )
    _parts: list[bytes] = field(factory=list)

    def judge(self, sent: Sent) -> Opinion:
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
                    received.append((PONG, bytes(payload)))
                case events.CloseConnection(code=code, reason=reason):
                    # One of the peer changes the state; one for a breach is only proposed.
                    if self.connection.state is wsproto.connection.ConnectionState.OPEN:
                        return Opinion(tuple(received), int(code))
                    payload = b"" if code == 1005 else struct.pack("!H", code)
                    received.append((CLOSE, payload + (reason or "").encode()))
        return Opinion(tuple(received))

    def _join(self, opcode: int, part: bytes, *, last: bool) -> list[Received]:
        self._parts.append(part)
        if not last:
            return []
        whole = b"".join(self._parts)
        self._parts.clear()
        return [(opcode, whole)]


@define(eq=False)
class Websockets:
    """The protocol of `websockets` as a server; that text is UTF-8 is seen to where it is joined,
    as the library's connections do."""

    limit: int = LIMIT
    protocol: TheirProtocol = field(init=False)
    _opcode: int = TEXT
    _parts: list[bytes] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.protocol = TheirProtocol(Side.SERVER, state=State.OPEN, max_size=self.limit)

    def judge(self, sent: Sent) -> Opinion:
        received: list[Received] = []
        self.protocol.receive_data(sent.bytes)
        for event in self.protocol.events_received():
            assert isinstance(event, TheirFrame)
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
                    return Opinion(tuple(received), 1007)
                received.append((self._opcode, whole))
        if self.protocol.parser_exc is not None:
            assert self.protocol.close_sent is not None
            return Opinion(tuple(received), int(self.protocol.close_sent.code))
        return Opinion(tuple(received))
