"""The frame parser beside wsproto: the same bytes, cut anywhere, give the same messages and control
frames."""

from __future__ import annotations

import itertools
import runpy
import struct
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import wsproto
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from websockets.utils import apply_mask
from wsproto import events

import relay.transport.framing.unmask
from relay.protocol.endings import Ending
from relay.transport.framing import frame_parser
from relay.transport.framing.breach import Breach
from relay.transport.framing.frame_parser import MAX_MESSAGES_PER_FEED, FrameParser, Message
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
from tests.unit.reference_parsers import arrive

LIMIT = 1 << 20
MASK = b"\x8a\x01\xfe\x37"
EDGES = [0, 1, 2, 124, 125, 126, 127, 128, 65535, 65536, 65537]
UNMASKS = pytest.mark.parametrize("unmask", [relay.transport.framing.unmask.unmask, apply_mask])


def masked(
    opcode: int, payload: bytes = b"", *, final: bool = True, mask: bytes = MASK, form: int = 0
) -> bytes:
    """A frame as a client sends it; `form`: the bits that its length is written in, 0 to fit."""
    size = len(payload)
    form = form or (7 if size < 126 else 16 if size < 1 << 16 else 64)
    first = opcode | (FIN if final else 0)
    if form == 7:
        header = bytes((first, 0x80 | size))
    elif form == 16:
        header = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        header = struct.pack("!BBQ", first, 0x80 | 127, size)
    return header + mask + apply_mask(payload, mask)


def in_clear(control: bytes) -> tuple[int, bytes]:
    """The opcode and the payload of a masked control frame."""
    return control[0] & 15, apply_mask(control[6:], control[2:6])


def tokens_in(controls: list[tuple[int, bytes]]) -> list[int]:
    """The tokens of pongs that have room for one."""
    return [
        int.from_bytes(payload)
        for opcode, payload in controls
        if opcode == PONG and len(payload) == TOKEN_BYTES
    ]


def latest_of_each(controls: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    kept: dict[int, bytes] = {}
    for opcode, payload in controls:
        kept.pop(opcode, None)
        kept[opcode] = payload
    return list(kept.items())


@define
class Ours:
    """A frame parser, fed as a stream feeds it."""

    parser: FrameParser = field(factory=lambda: FrameParser(LIMIT))
    messages: list[tuple[int, bytes]] = field(factory=list)
    controls: list[tuple[int, bytes]] = field(factory=list)
    answers: list[int] = field(factory=list)
    overhead: int = 0
    breach: Breach | None = None

    @property
    def ending(self) -> Ending | None:
        return None if self.breach is None else self.breach.ending

    def feed(self, data: bytes) -> None:
        """Parse bytes that arrive together."""
        controls: list[tuple[int, bytes]] = []
        for parsed in arrive(self.parser, data):
            assert len(parsed.messages) <= MAX_MESSAGES_PER_FEED
            self.messages += [(each.opcode, each.payload) for each in parsed.messages]
            controls += map(in_clear, parsed.controls)
            self.answers += parsed.answers
            self.overhead += parsed.overhead
            assert parsed.breach is None or self.breach is None
            self.breach = self.breach or parsed.breach
        self.controls += latest_of_each(controls)


@define
class Oracle:
    """wsproto as a server, which the frame parser is compared with."""

    connection: wsproto.connection.Connection = field(
        factory=lambda: wsproto.connection.Connection(wsproto.ConnectionType.SERVER)
    )
    messages: list[tuple[int, bytes]] = field(factory=list)
    controls: list[tuple[int, bytes]] = field(factory=list)
    answers: list[int] = field(factory=list)
    closed: bool = False
    fault: int | None = None
    _parts: list[bytes] = field(factory=list)

    def feed(self, data: bytes) -> None:
        if self.closed:
            return
        self.connection.receive_data(data)
        controls: list[tuple[int, bytes]] = []
        for event in self.connection.events():
            self._take(event, controls)
        self.controls += latest_of_each(controls)

    def _take(self, event: Any, controls: list[tuple[int, bytes]]) -> None:
        if isinstance(event, events.TextMessage | events.BytesMessage):
            data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            self._parts.append(data)
            if event.message_finished:
                opcode = TEXT if isinstance(event, events.TextMessage) else BINARY
                self.messages.append((opcode, b"".join(self._parts)))
                self._parts.clear()
        elif isinstance(event, events.Pong):
            self.answers += tokens_in([(PONG, bytes(event.payload))])
        elif isinstance(event, events.Ping):
            controls.append((PING, bytes(event.payload)))
        else:
            self.closed = True
            if self.connection.state is wsproto.connection.ConnectionState.OPEN:
                self.fault = int(event.code)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces; the places are taken modulo its length."""
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(marks)]


def exactly(unit: bytes, size: int) -> bytes:
    """So many bytes of whole units, valid UTF-8 if the unit is."""
    return unit * (size // len(unit)) + b"x" * (size % len(unit)) if unit else b"x" * size


sizes = st.integers(0, 300) | st.sampled_from(EDGES)
masks = st.binary(min_size=4, max_size=4)
texts = st.builds(exactly, st.text(max_size=8).map(str.encode), sizes)
blobs = st.builds(exactly, st.binary(max_size=8), sizes)
data_messages = st.tuples(st.just(TEXT), texts) | st.tuples(st.just(BINARY), blobs)
tokens = st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)
pings_and_pongs = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125) | tokens)
places = st.lists(st.integers(0, 1 << 18), max_size=12)


@st.composite
def conversations(
    draw: st.DrawFn, messages: st.SearchStrategy[tuple[int, bytes]] = data_messages
) -> tuple[bytes, list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """Bytes of whole frames, and the messages and controls in them."""
    sent, controls, data = [], [], bytearray()

    def perhaps_control() -> None:
        if draw(st.booleans()):
            control = draw(pings_and_pongs)
            controls.append(control)
            data.extend(masked(*control, mask=draw(masks)))

    for opcode, payload in draw(st.lists(messages, max_size=5)):
        perhaps_control()
        sent.append((opcode, payload))
        pieces = cut(payload, draw(st.lists(st.integers(0, 1 << 17), max_size=3)))
        pieces += [b""] * draw(st.integers(0, 2)) or ([] if pieces else [b""])
        for number, piece in enumerate(pieces, 1):
            kind = opcode if number == 1 else CONTINUATION
            data += masked(kind, piece, final=number == len(pieces), mask=draw(masks))
            if number < len(pieces):
                perhaps_control()
    perhaps_control()
    return bytes(data), sent, controls


@UNMASKS
def test_whole_conversations_come_out_as_they_were_sent(unmask: Callable[..., bytes]) -> None:
    @given(conversations(), places)
    def check(
        conversation: tuple[bytes, list[tuple[int, bytes]], list[tuple[int, bytes]]],
        places: list[int],
    ) -> None:
        data, messages, controls = conversation
        ours, oracle = Ours(), Oracle()
        for piece in cut(data, places):
            ours.feed(piece)
            oracle.feed(piece)
        assert ours.messages == oracle.messages == messages
        assert ours.controls == oracle.controls
        assert set(ours.controls) <= set(controls)
        assert ours.answers == oracle.answers == tokens_in(controls)
        assert ours.ending is None
        assert ours.parser.missing is None

    with mock.patch.object(frame_parser, "unmask", unmask):
        check()


short_messages = st.tuples(st.just(TEXT), st.text(max_size=40).map(str.encode)) | st.tuples(
    st.just(BINARY), st.binary(max_size=200)
)


@given(conversations(short_messages))
def test_byte_by_byte_no_control_is_passed_over(
    conversation: tuple[bytes, list[tuple[int, bytes]], list[tuple[int, bytes]]],
) -> None:
    data, messages, controls = conversation
    ours = Ours()
    for byte in data:
        ours.feed(bytes((byte,)))
    assert ours.messages == messages
    assert ours.controls == [each for each in controls if each[0] == PING]
    assert ours.answers == tokens_in(controls)


def compare_broken(data: bytes, places: list[int]) -> None:
    """Feed anything to both: ours takes what wsproto takes.

    Two differences are intended: ours checks a text when it is whole, while wsproto checks each
    part; and ours has a largest size.
    """
    # Something that is a breach at the start of every frame: wsproto notices later than we do.
    data += b"\xff" * 32
    ours, oracle = Ours(), Oracle()
    for piece in cut(data, places):
        ours.feed(piece)
        oracle.feed(piece)
    closed = any(opcode == CLOSE for opcode, _ in ours.controls)
    assert ours.parser.stopped == (closed or ours.ending is not None)
    if ours.ending is Ending.MESSAGE_TOO_BIG:
        assert ours.messages == oracle.messages[: len(ours.messages)]
        return
    assert ours.messages == oracle.messages
    if oracle.fault == 1007:
        unfinished = ours.parser.missing is not None or ours.parser._fragments is not None
        assert ours.ending is not None or closed or unfinished
    else:
        assert ours.ending is (None if oracle.fault is None else Ending.PROTOCOL_ERROR)
        assert closed == (oracle.closed and oracle.fault is None)
        assert [each for each in ours.controls if each[0] != CLOSE] == oracle.controls
        assert ours.answers == oracle.answers


closes = st.tuples(
    st.just(CLOSE),
    st.binary(max_size=20)
    | st.builds(
        lambda code, reason: struct.pack("!H", code) + reason,
        st.integers(990, 5010),
        st.binary(max_size=3) | st.text(max_size=9).map(str.encode),
    ),
)
odd_frames = st.builds(
    masked,
    st.integers(0, 127),
    st.binary(max_size=140),
    final=st.booleans(),
    mask=masks,
    form=st.sampled_from([0, 16, 64]),
)


@given(
    conversations(short_messages),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=4),
    places,
)
def test_flipped_bits_are_taken_as_wsproto_takes_them(
    conversation: tuple[bytes, list[tuple[int, bytes]], list[tuple[int, bytes]]],
    flips: list[tuple[int, int]],
    places: list[int],
) -> None:
    data = bytearray(conversation[0] or masked(TEXT, b"something"))
    for place, bits in flips:
        data[place % len(data)] ^= bits
    compare_broken(bytes(data), places)


@given(
    st.lists(
        odd_frames
        | conversations(short_messages).map(lambda conversation: conversation[0])
        | closes.map(lambda close: masked(*close))
        | st.binary(max_size=20),
        max_size=6,
    ).map(b"".join),
    places,
)
def test_odd_frames_and_garbage_are_taken_as_wsproto_takes_them(
    data: bytes, places: list[int]
) -> None:
    compare_broken(data, places)


# -- the edges, one by one


def fed(data: bytes, limit: int = LIMIT) -> Ours:
    """The outcome, which is the same in one piece, in two, and byte by byte."""
    whole, slowly = Ours(FrameParser(limit)), Ours(FrameParser(limit))
    whole.feed(data)
    for piece in (data[:14], *(bytes((byte,)) for byte in data[14:64]), data[64:]):
        slowly.feed(piece)
    assert (whole.messages, whole.breach) == (slowly.messages, slowly.breach)
    return whole


@pytest.mark.parametrize("size", EDGES)
def test_every_size_has_one_right_length(size: int) -> None:
    payload = exactly("é☃".encode(), size)
    assert fed(masked(TEXT, payload)).messages == [(TEXT, payload)]


@pytest.mark.parametrize(("size", "form"), [(0, 16), (125, 16), (125, 64), (126, 64), (65535, 64)])
def test_a_length_longer_than_need_be_is_a_breach(size: int, form: int) -> None:
    ours = fed(masked(BINARY, bytes(size), form=form))
    assert (ours.breach, ours.messages) == (Breach.OVERLONG_LENGTH, [])
    assert ours.ending is Ending.PROTOCOL_ERROR


@pytest.mark.parametrize("size", [100, 126, 70_000])
def test_the_largest_message_passes_and_a_larger_one_does_not(size: int) -> None:
    assert fed(masked(BINARY, bytes(size)), limit=size).messages == [(BINARY, bytes(size))]
    ours = fed(masked(BINARY, bytes(size + 1)), limit=size)
    assert (ours.ending, ours.messages) == (Ending.MESSAGE_TOO_BIG, [])


@pytest.mark.parametrize("over", [0, 1])
def test_fragments_count_together(over: int) -> None:
    data = masked(BINARY, bytes(60), final=False) + masked(CONTINUATION, bytes(40 + over))
    ours = fed(data, limit=100)
    if over:
        assert (ours.ending, ours.messages) == (Ending.MESSAGE_TOO_BIG, [])
    else:
        assert ours.messages == [(BINARY, bytes(100))]


def test_a_message_too_big_is_refused_by_its_header_before_memory_is_taken_for_it() -> None:
    ours = Ours(FrameParser(100))
    ours.feed(masked(BINARY, bytes(101))[:2])
    assert ours.ending is Ending.MESSAGE_TOO_BIG
    ours = Ours(FrameParser(1 << 20))
    ours.feed(struct.pack("!BBQ", FIN | BINARY, 0x80 | 127, (1 << 63) - 1))
    assert ours.ending is Ending.MESSAGE_TOO_BIG


def test_controls_do_not_count_towards_the_size_of_a_message() -> None:
    data = masked(TEXT, b"ab", final=False) + masked(PING, bytes(125)) + masked(CONTINUATION, b"c")
    ours = fed(data, limit=3)
    assert ours.messages == [(TEXT, b"abc")]
    assert ours.controls == [(PING, bytes(125))]


@pytest.mark.parametrize(
    ("data", "breach"),
    [
        (b"\x81\x00", Breach.UNMASKED),
        (b"\x89\x00", Breach.UNMASKED),
        *[(masked(bit | TEXT), Breach.RESERVED_BITS) for bit in (16, 32, 64)],
        *[(masked(each), Breach.UNKNOWN_OPCODE) for each in (3, 4, 5, 6, 7)],
        *[(masked(each), Breach.UNKNOWN_OPCODE) for each in (11, 12, 13, 14, 15)],
        *[(masked(each, final=False), Breach.FRAGMENTED_CONTROL) for each in (CLOSE, PING, PONG)],
        *[(masked(each, bytes(126)), Breach.LONG_CONTROL) for each in (CLOSE, PING, PONG)],
        (b"\x82\xff\x80" + bytes(7) + MASK, Breach.LENGTH_OVERFLOW),
        (masked(CONTINUATION, b"x"), Breach.NOTHING_TO_CONTINUE),
        (masked(CONTINUATION, final=False), Breach.NOTHING_TO_CONTINUE),
        (masked(TEXT, b"x", final=False) + masked(TEXT, b"y"), Breach.UNFINISHED_MESSAGE),
        (masked(TEXT, final=False) + masked(BINARY, b"y"), Breach.UNFINISHED_MESSAGE),
    ],
)
def test_breaches_are_protocol_errors_and_stop_the_parser(data: bytes, breach: Breach) -> None:
    ours = fed(masked(TEXT, b"before") + data + masked(TEXT, b"after") + masked(PING))
    assert (ours.breach, ours.ending) == (breach, Ending.PROTOCOL_ERROR)
    assert ours.messages == [(TEXT, b"before")]
    assert ours.controls == []


def test_every_breach_ends_the_connection_with_a_close_code() -> None:
    assert {each.ending.value.code for each in Breach} == {1002, 1007, 1009}


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\xc3",
        b"\xc0\x80",
        b"\xe2\x98",
        b"\xed\xa0\x80",  # a surrogate
        b"\xf4\x90\x80\x80",  # behind the last character
        b"good, then " + b"\x80",
    ],
)
def test_text_that_is_not_utf8_is_told_apart(payload: bytes) -> None:
    ours = fed(masked(TEXT, payload) + masked(TEXT, b"after"))
    assert (ours.ending, ours.messages) == (Ending.NOT_UTF8, [])
    assert fed(masked(BINARY, payload)).messages == [(BINARY, payload)]


@pytest.mark.parametrize("place", range(1, 9))
def test_a_character_may_be_cut_across_fragments(place: int) -> None:
    text = "é☃😀".encode()
    data = masked(TEXT, text[:place], final=False) + masked(CONTINUATION, text[place:])
    assert fed(data).messages == [(TEXT, text)]
    ours = fed(masked(TEXT, text[:-1], final=False) + masked(CONTINUATION))
    assert (ours.ending, ours.messages) == (Ending.NOT_UTF8, [])


def test_more_messages_than_are_given_at_once_all_arrive_in_order() -> None:
    number = 3 * MAX_MESSAGES_PER_FEED + 7
    data = memoryview(b"".join(masked(TEXT, str(each).encode()) for each in range(number)))
    parser, batches = FrameParser(LIMIT), []
    while data:
        parsed = parser.feed(data)
        batches.append(parsed.messages)
        data = parsed.rest
    assert [len(batch) for batch in batches] == [MAX_MESSAGES_PER_FEED] * 3 + [7]
    expected = [Message(TEXT, str(each).encode()) for each in range(number)]
    assert [message for batch in batches for message in batch] == expected


def test_empty_fragments_without_end_use_no_memory() -> None:
    parser = FrameParser(LIMIT)
    start, more = masked(TEXT, final=False), memoryview(masked(CONTINUATION, final=False) * 1000)
    parser.feed(memoryview(start))
    parser.feed(more)
    tracemalloc.start()
    try:
        for _ in range(20):
            parser.feed(more)
        # Other threads, as those of a test worker, take memory too.
        own = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, frame_parser.__file__)]
        )
    finally:
        tracemalloc.stop()
    assert sum(trace.size for trace in own.traces) < 1000
    parsed = parser.feed(memoryview(masked(CONTINUATION, b"end")))
    assert parsed.messages == [Message(TEXT, b"end")]


def test_of_many_pings_only_the_latest_stays() -> None:
    pings = b"".join(masked(PING, str(each).encode()) for each in range(5000))
    outcomes = list(arrive(FrameParser(LIMIT), pings))
    assert sum(each.overhead for each in outcomes) == 5000
    assert {len(each.controls) for each in outcomes} == {1}
    assert in_clear(outcomes[-1].controls[0]) == (PING, b"4999")


def test_nothing_counts_after_a_close() -> None:
    ours = fed(masked(TEXT, b"a") + masked(CLOSE, b"\x03\xe8") + masked(TEXT, b"b") + masked(PING))
    assert (ours.messages, ours.ending) == ([(TEXT, b"a")], None)
    assert ours.controls == [(CLOSE, b"\x03\xe8")]


@pytest.mark.parametrize(
    ("payload", "breach"),
    [
        (b"", None),
        (b"\x03", Breach.CUT_CLOSE_CODE),
        (b"\x03\xe8", None),
        (b"\x03\xe8" + b"x" * 123, None),
        (b"\x03\xe8\xff", Breach.CLOSE_REASON_NOT_UTF8),
        (b"\x03\xe8\xc3", Breach.CLOSE_REASON_NOT_UTF8),
        (b"\x03\xedforbidden", Breach.FORBIDDEN_CLOSE_CODE),
    ],
)
def test_the_payload_of_a_close_is_checked(payload: bytes, breach: Breach | None) -> None:
    ours = fed(masked(CLOSE, payload))
    assert ours.breach is breach
    assert ours.controls == ([] if breach else [(CLOSE, payload)])


def test_every_close_code_is_taken_as_wsproto_takes_it() -> None:
    for code in (*range(990, 1030), 1999, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 0, 65535):
        compare_broken(masked(CLOSE, struct.pack("!H", code)), [])


def test_an_incomplete_message_is_let_go_with_the_breach() -> None:
    ours = Ours()
    ours.feed(masked(BINARY, bytes(50_000), final=False) + masked(TEXT))
    assert ours.ending is Ending.PROTOCOL_ERROR
    assert ours.parser._fragments is None


def test_without_the_extension_the_pure_version_unmasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    assert runpy.run_path(relay.transport.framing.unmask.__file__)["unmask"] is apply_mask
