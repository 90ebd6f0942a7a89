"""Takes whole data messages out of the bytes of a WebSocket. Floor 1, no I/O.

trio-websocket gets to see the control frames only; what carries data never passes through it. A
frame that is cut is completed in a buffer of its own size, which the caller fills straight from the
socket; of the budget that all connections share it takes what has come.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import msgspec
from attrs import define, field

from relay.closing import Ending
from relay.transport.budget import Budget
from relay.transport.link import Buffer
from relay.transport.unmask import unmask
from relay.transport.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    LONGEST_CONTROL,
    LONGEST_HEADER,
    MASKED,
    PONG,
    RESERVED,
    TEXT,
)

CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1014)}
"""Those below 3000 that an endpoint may send."""

MESSAGES_AT_ONCE = 64
"""So many messages `feed` returns at most before it wants to be called again."""
FRAMES_AT_ONCE = 512
"""And so many frames it looks at: of empty ones, one read can bring tens of thousands."""


SMALL_FRAGMENT = 1024
"""Bytes of a fragment below which it is noise: no client has a reason to cut so small."""

LAZY_ROOM = 1 << 20
"""Bytes of a cut frame from which on the operating system clears the room for it bit by bit."""


class Message(msgspec.Struct, frozen=True):
    """A data message, its fragments joined."""

    opcode: int
    payload: bytes


@define(eq=False)
class Splicer:
    """The incoming half of one WebSocket, from the end of its handshake."""

    max_message: int
    """Bytes; may be changed between messages."""
    budget: Budget | None = None
    """For what is half received, shared with other connections."""
    on_loss: Callable[[], object] = field(default=lambda: None)
    """Called when what is half received had to go for the sake of others."""
    at_once: int = MESSAGES_AT_ONCE
    controls: list[bytes] = field(factory=list)
    """Masked control frames, whole, for trio-websocket. Of each kind only the latest stays."""
    fault: Ending | None = None
    """The ending that the peer's breach of the protocol asks for."""
    missing: memoryview | None = None
    """While a frame is cut: the place for the bytes that it lacks."""
    _cut: bytearray | mmap.mmap | None = field(default=None, repr=False)
    _opcode: int = TEXT
    _fragments: bytearray | None = field(default=None, repr=False)
    borrowed: int = 0
    noise: int = 0
    """Control frames and small fragments, until somebody counts them."""
    deaf: bool = False
    """Whether nothing that comes now counts: after a Close or a breach of the protocol."""

    def filled(self, count: int) -> Buffer:
        """Say that `count` bytes were put into `missing`; returns the frame once it is whole."""
        if self.missing is None or self._cut is None:  # it was lost meanwhile
            return b""
        if count < len(self.missing):
            self.missing = self.missing[count:]
            self._borrow(count)
            return b""
        whole, self._cut, self.missing = self._cut, None, None
        self._give_back(self.borrowed - len(self._fragments or b""))
        return memoryview(whole)

    def forget(self) -> None:
        """Let go of what is half received; nothing more will come."""
        self.deaf = True
        self._cut = self.missing = self._fragments = None
        self._give_back(self.borrowed)

    def lose(self) -> None:
        self._break(Ending.OVERLOADED)
        self.on_loss()

    def feed(self, data: memoryview) -> tuple[list[Message], memoryview]:
        """Take in bytes; returns the messages that are complete and the bytes not looked at yet."""
        messages: list[Message] = []
        at, end = 0, len(data)
        for _ in range(FRAMES_AT_ONCE):
            if at == end or self.deaf or len(messages) == self.at_once:
                break
            header, size = self._measure(data[at : at + LONGEST_HEADER])
            if at + size > end:
                self._keep(data[at:], size)
                return messages, data[:0]
            if self.deaf:
                break
            message = self._take(data[at : at + size], header)
            if message is not None:
                messages.append(message)
            at += size
        return messages, data[:0] if self.deaf else data[at:]

    def _measure(self, data: memoryview) -> tuple[int, int]:
        """The sizes of the header without its mask, and of the whole frame that begins here.

        Where there is not enough to tell: of what it takes to tell. After a breach of the protocol
        both are 0.
        """
        if len(data) < 2:
            return 2, 2
        first, second = data[0], data[1]
        opcode, length = first & 15, second & 127
        control = opcode >= CLOSE
        if (
            first & RESERVED
            or not second & MASKED
            or (BINARY < opcode < CLOSE)
            or opcode > PONG
            or (control and (length > LONGEST_CONTROL or not first & FIN))
            or (not control and (opcode == CONTINUATION) != (self._fragments is not None))
        ):
            self._break(Ending.PROTOCOL_ERROR)
            return 0, 0
        header = 2
        if length >= 126:
            header = 4 if length == 126 else 10
            if len(data) < header:
                return header, header
            shortest = 126 if length == 126 else 1 << 16
            length = int.from_bytes(data[2:header], "big")
            if length < shortest or length >= 1 << 63:
                self._break(Ending.PROTOCOL_ERROR)
                return 0, 0
        if not control and length + len(self._fragments or b"") > self.max_message:
            self._break(Ending.MESSAGE_TOO_BIG)
            return 0, 0
        return header, header + 4 + length

    def _keep(self, data: memoryview, size: int) -> None:
        self._cut = _room_for(size)
        self._cut[: len(data)] = data
        self.missing = memoryview(self._cut)[len(data) :]
        self._borrow(len(data))

    def _take(self, data: memoryview, header: int) -> Message | None:
        """Take one whole frame; returns the message that it completes."""
        opcode, final = data[0] & 15, data[0] & FIN
        if opcode >= CLOSE:
            self.noise += 1
            self._control(data.tobytes())
            return None
        payload = unmask(data[header + 4 :], data[header : header + 4].tobytes())
        if opcode != CONTINUATION:
            self._opcode = opcode
        if not final or opcode == CONTINUATION:
            self.noise += len(payload) < SMALL_FRAGMENT
            if self._fragments is None:
                self._fragments = bytearray()
            self._fragments += payload
            if not final:
                self._borrow(len(payload))
                return None
            self._give_back(len(self._fragments) - len(payload))
            payload, self._fragments = bytes(self._fragments), None
        if self._opcode == TEXT and not _is_utf8(payload):
            self._break(Ending.NOT_UTF8)
            return None
        return Message(self._opcode, payload)

    def _control(self, whole: bytes) -> None:
        if whole[0] & 15 == CLOSE:
            breach = _breach_of_close(unmask(whole[6:], whole[2:6]))
            if breach is not None:
                self._break(breach)
                return
        self.controls = [old for old in self.controls if old[0] != whole[0]]
        self.controls.append(whole)
        self.deaf = whole[0] & 15 == CLOSE

    def _break(self, ending: Ending) -> None:
        self.fault = ending
        self.forget()

    def _borrow(self, size: int) -> None:
        if self.budget is not None:
            self.budget.lend(size, self)

    def _give_back(self, size: int) -> None:
        if self.budget is not None:
            self.budget.give_back(size, self)


def _room_for(size: int) -> bytearray | mmap.mmap:
    """Zeros. Of a lot of room none is taken from the machine before bytes come to fill it: what a
    peer announces and does not send costs nothing."""
    if size < LAZY_ROOM:
        return bytearray(size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _breach_of_close(payload: bytes) -> Ending | None:
    """What is wrong with the payload of a Close, for which wsproto would just hang up."""
    if not payload:
        return None
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in CLOSE_CODES or 3000 <= code < 5000):
        return Ending.PROTOCOL_ERROR
    return None if _is_utf8(payload[2:]) else Ending.NOT_UTF8


def _is_utf8(payload: bytes) -> bool:
    if payload.isascii():  # as most is, and quicker to tell
        return True
    try:
        str(payload, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
