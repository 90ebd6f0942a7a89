"""Parses what a client sends over a WebSocket into whole messages. No I/O.

The rest of a frame that arrived in part is read straight into a buffer, which grows as bytes
arrive: what a peer announces and does not send takes no room. The room is reserved from the budget
that all connections share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from attrs import define, field

from relay.transport.budget import Budget
from relay.transport.framing.breach import Breach, ProtocolViolation
from relay.transport.framing.frame_buffer import MIN_ROOM_BYTES, FrameBuffer
from relay.transport.framing.unmask import unmask
from relay.transport.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    MASKED,
    MAX_CONTROL_BYTES,
    PONG,
    RESERVED_BITS,
    TEXT,
    token_of,
)

SENDABLE_CLOSE_CODES = {1000, 1001, 1002, 1003, *range(1007, 1014)}
"""The codes below 3000 that an endpoint may send."""

MAX_MESSAGES_PER_FEED = 64
MAX_FRAMES_PER_FEED = 512
"""Frames parsed in one call: one read can bring tens of thousands of empty ones."""

SMALL_FRAGMENT_BYTES = 1024
"""Shorter fragments count as overhead: no client has a reason to cut so small."""


MAX_CHECKED_BYTES = 256 * 1024
"""Text up to this size is checked here to be UTF-8. What is larger takes too long at a time, and is
checked by the one who reads it."""


class Message(msgspec.Struct, frozen=True):
    """A data message, its fragments joined; not checked to be UTF-8 if it is a large text."""

    opcode: int
    payload: bytes


class IncompleteMessage(msgspec.Struct, frozen=True):
    """A message of which only a part has arrived."""

    number: int
    """Counts the incomplete messages of a connection."""
    arrived: int
    """Bytes."""


class ParsedFrames(msgspec.Struct, frozen=True):
    """The outcome of parsing some bytes."""

    messages: list[Message]
    """The messages that are complete now, in order."""
    rest: memoryview
    """Bytes that were not parsed yet; feed them next."""
    controls: tuple[bytes, ...] = ()
    """The control frames that want an answer, a ping and a Close, whole and masked; of several
    pings the latest."""
    answers: Sequence[int] = ()
    """The tokens of all pongs that may answer a probe, in order."""
    overhead: int = 0
    """Control frames and small fragments."""
    breach: Breach | None = None
    """What the peer did wrong behind these messages; nothing more is parsed."""


_NO_BYTES = memoryview(b"")  # no slice, which would keep its buffer alive
_NOTHING = ParsedFrames([], _NO_BYTES)


@define(eq=False)
class FrameParser:
    """The incoming half of one WebSocket, after its handshake."""

    max_message: int
    """Bytes; may be changed between messages."""
    budget: Budget | None = None
    """For incomplete messages, shared with other connections."""
    party: str = ""
    """Who answers for the bytes that are held of the budget; changed by `belong_to`."""
    on_evicted: Callable[[], object] = field(default=lambda: None)
    """Called when the incomplete message is dropped to make room for others."""
    max_messages: int = MAX_MESSAGES_PER_FEED
    """Messages in one outcome."""
    reserved: int = 0
    """Bytes held of the budget."""
    stopped: bool = False
    """Whether further bytes are ignored: after a Close, a breach, or an eviction."""
    _cut: FrameBuffer | None = field(default=None, repr=False)
    """The incomplete frame, or the part of its header that is needed to go on."""
    _usual: int = 0
    """Bytes of the last frame that came in several reads: the next one is expected to be alike."""
    _begun: int = 0
    """How many incomplete messages have begun."""
    _unparsed: int = 0
    """Bytes reserved by `hold_unparsed`."""
    _opcode: int = TEXT
    """Of the message that `_fragments` belong to."""
    _fragments: bytearray | None = field(default=None, repr=False)

    def feed(self, data: memoryview) -> ParsedFrames:
        """Parse bytes, while no frame is incomplete."""
        messages: list[Message] = []
        controls: tuple[bytes, ...] = ()
        overhead, breach = 0, None
        answers: list[int] = []
        at, end = 0, len(data)
        try:
            for _ in range(MAX_FRAMES_PER_FEED):
                if at == end or self.stopped or len(messages) == self.max_messages:
                    break
                start, size = self._measure(data, at, end)
                if at + size > end:
                    self._begin_cut(data[at:], size)
                    at = end
                    break
                first, opcode = data[at], data[at] & 15
                if opcode >= CLOSE:
                    overhead += 1
                    controls = self._take_control(data[at : at + size], controls, answers)
                else:
                    payload = unmask(data[start : at + size], data[start - 4 : start].tobytes())
                    if not first & FIN or opcode == CONTINUATION:
                        overhead += len(payload) < SMALL_FRAGMENT_BYTES
                        joined = self._join(first, payload)
                        if joined is not None:
                            messages.append(_message(self._opcode, joined))
                    elif opcode == BINARY:
                        messages.append(Message(opcode, payload))
                    else:
                        messages.append(_message(opcode, payload))
                at += size
        except ProtocolViolation as violation:
            breach = violation.breach
            self.stop()
        rest = _NO_BYTES if at == end or self.stopped else data[at:]
        return ParsedFrames(messages, rest, controls, answers, overhead, breach)

    @property
    def missing(self) -> memoryview | None:
        """While a frame is incomplete: the place for its next bytes."""
        return None if self._cut is None else self._cut.missing

    def fill(self, count: int) -> ParsedFrames:
        """Parse the incomplete frame after `count` bytes were put into `missing`."""
        if self._cut is None:  # it was evicted meanwhile
            return _NOTHING
        room = self._cut.room
        whole = self._cut.fill(count)
        if whole is None:
            if self._cut.room > room:
                self._reserve(self._cut.room - room)
            return _NOTHING
        self._cut = None
        if len(whole) > MIN_ROOM_BYTES:
            self._usual = len(whole)
        self._release(room)
        return self.feed(whole)

    @property
    def incomplete(self) -> IncompleteMessage | None:
        """The message of which only a part has arrived, if there is one."""
        arrived = len(self._fragments or b"")
        if self._cut is not None:
            arrived += self._cut.arrived
        return IncompleteMessage(self._begun, arrived) if arrived else None

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is incomplete, so that another parser could go on."""
        return self._cut is None and self._fragments is None and not self.stopped

    def hold_unparsed(self, size: int) -> None:
        """Reserve the bytes that the caller keeps, to feed them later; 0 when it keeps none."""
        more, self._unparsed = size - self._unparsed, size
        if more > 0:
            self._reserve(more)
        else:
            self._release(-more)

    def belong_to(self, party: str) -> None:
        """Let another party answer for what is held, and for what comes."""
        held = self.reserved
        self._release(held)
        self.party = party
        if held:
            self._reserve(held)

    def stop(self) -> None:
        """Ignore what still comes, and let go of the incomplete message."""
        self.stopped = True
        self._cut = self._fragments = None
        self._unparsed = 0
        self._release(self.reserved)

    def evict(self) -> None:
        self.stop()
        self.on_evicted()

    def _measure(self, data: memoryview, at: int, end: int) -> tuple[int, int]:
        """Return where the payload of the frame at `at` starts, and the size of the frame.

        When the header is incomplete, the size is that of the part that is needed to go on.
        """
        if end - at < 2:
            return at, 2
        first, second = data[at], data[at + 1]
        opcode, length = first & 15, second & 127
        control = opcode >= CLOSE
        if (
            first & RESERVED_BITS
            or not second & MASKED
            or (BINARY < opcode < CLOSE)
            or opcode > PONG
            or (control and (length > MAX_CONTROL_BYTES or not first & FIN))
            or (not control and (opcode == CONTINUATION) != (self._fragments is not None))
        ):
            raise ProtocolViolation(_breach_of_header(first, second))
        header = 2
        if length >= 126:
            header = 4 if length == 126 else 10
            if end - at < header:
                return at, header
            shortest = 126 if length == 126 else 1 << 16
            length = int.from_bytes(data[at + 2 : at + header], "big")
            if length < shortest:
                raise ProtocolViolation(Breach.OVERLONG_LENGTH)
            if length >= 1 << 63:
                raise ProtocolViolation(Breach.LENGTH_OVERFLOW)
        if not control and length + len(self._fragments or b"") > self.max_message:
            raise ProtocolViolation(Breach.MESSAGE_TOO_BIG)
        return at + header + 4, header + 4 + length

    def _begin_cut(self, data: memoryview, size: int) -> None:
        """Keep the beginning of a frame of this size, or of its header."""
        self._begun += self._fragments is None
        self._cut = FrameBuffer(data, size, self._usual)
        self._reserve(self._cut.room)

    def _join(self, first: int, payload: bytes) -> bytes | None:
        """Add a fragment; returns the payload of the message if it was the last one."""
        if self._fragments is None:
            self._opcode, self._fragments = first & 15, bytearray()
            self._begun += 1
        self._fragments += payload
        if not first & FIN:
            self._reserve(len(payload))
            return None
        self._release(len(self._fragments) - len(payload))
        joined, self._fragments = bytes(self._fragments), None
        return joined

    def _take_control(
        self, frame: memoryview, controls: tuple[bytes, ...], answers: list[int]
    ) -> tuple[bytes, ...]:
        """Add the token of a pong to the answers; returns the control frames with a ping or a
        Close, in place of an earlier ping."""
        opcode = frame[0] & 15
        if opcode == PONG:
            token = token_of(frame)
            if token is not None:
                answers.append(token)
            return controls
        whole = frame.tobytes()
        if opcode == CLOSE:
            breach = _breach_of_close(unmask(whole[6:], whole[2:6]))
            if breach is not None:
                raise ProtocolViolation(breach)
            self.stopped = True
        return (*[each for each in controls if each[0] != whole[0]], whole)

    def _reserve(self, size: int) -> None:
        if self.budget is not None:
            self.budget.reserve(size, self)

    def _release(self, size: int) -> None:
        if self.budget is not None:
            self.budget.release(size, self)


def _message(opcode: int, payload: bytes) -> Message:
    if opcode == TEXT and len(payload) <= MAX_CHECKED_BYTES and not _is_utf8(payload):
        raise ProtocolViolation(Breach.TEXT_NOT_UTF8)
    return Message(opcode, payload)


def _breach_of_header(first: int, second: int) -> Breach:
    """Return what is wrong with the first two bytes of a frame, one of which is."""
    opcode = first & 15
    if first & RESERVED_BITS:
        return Breach.RESERVED_BITS
    if not second & MASKED:
        return Breach.UNMASKED
    if BINARY < opcode < CLOSE or opcode > PONG:
        return Breach.UNKNOWN_OPCODE
    if opcode >= CLOSE:
        long = second & 127 > MAX_CONTROL_BYTES
        return Breach.LONG_CONTROL if long else Breach.FRAGMENTED_CONTROL
    continues = opcode == CONTINUATION
    return Breach.NOTHING_TO_CONTINUE if continues else Breach.UNFINISHED_MESSAGE


def _breach_of_close(payload: bytes) -> Breach | None:
    """Return what is wrong with the payload of a Close, for which wsproto would just hang up."""
    if not payload:
        return None
    if len(payload) == 1:
        return Breach.CUT_CLOSE_CODE
    code = int.from_bytes(payload[:2], "big")
    if not (code in SENDABLE_CLOSE_CODES or 3000 <= code < 5000):
        return Breach.FORBIDDEN_CLOSE_CODE
    return None if _is_utf8(payload[2:]) else Breach.CLOSE_REASON_NOT_UTF8


def _is_utf8(payload: bytes) -> bool:
    if payload.isascii():  # most text is, and this is quicker to tell
        return True
    try:
        str(payload, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
