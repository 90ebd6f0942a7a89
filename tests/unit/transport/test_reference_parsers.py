"""What our parser takes and refuses, frame by frame, beside wsproto and `websockets`.

Where the three differ is said in `says_wsproto` and `says_websockets`, and nowhere else; for each
difference there is an example in `DIFFERENCES`.
"""

from __future__ import annotations

import codecs
import itertools
import struct
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transport.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, TOKEN_BYTES
from tests.unit.reference_parsers import (
    CONTROLS,
    KNOWN,
    LIMIT,
    Ours,
    Outcome,
    Sent,
    Websockets,
    Wsproto,
)

ENDLESS = 1 << 63
"""The first length that is none: its highest bit must be 0."""
BAD_GATEWAY = struct.pack("!H", 1014)


def says_wsproto(ours: Ours, sent: Sent) -> Outcome:
    """What wsproto must make of a frame, from what ours makes of it after the same frames."""
    unlimited = ours.but(limit=1 << 62)
    outcome = unlimited.parse(sent)
    if unlimited.text and outcome.refused is None and sent.opcode < CLOSE:
        text = (ours.fragments or b"") + sent.payload
        if not sent.final and not may_begin_text(text):
            return Outcome((), 1007)  # it does not wait for the end of the message
    return outcome


def says_websockets(ours: Ours, sent: Sent) -> Outcome:
    """The same for `websockets`."""
    fragments = ours.fragments
    room = ours.limit - len(fragments or b"")
    if sent.opcode in KNOWN and sent.masked and sent.size > room:
        # It looks at the size before all else, and counts what comes between fragments.
        return Outcome((), 1009)
    tidy = attrs.evolve(sent, form=0)  # it takes any form of a length
    if sent.opcode == CLOSE and sent.payload[:2] == BAD_GATEWAY:
        # It knows this code, which wsproto does not let pass.
        tidy = attrs.evolve(tidy, payload=b"\x03\xe8" + sent.payload[2:])
    outcome = ours.but().parse(tidy)
    if sent.opcode == CLOSE and outcome.refused == 1002 and reads_reason(sent):
        return Outcome((), 1007)  # it looks at the reason before the code
    if sent.opcode == CLOSE and outcome.refused is None:
        if fragments is not None:
            return Outcome((), 1002)  # it wants a message to be whole before a Close
        return Outcome(((CLOSE, sent.payload),))
    return outcome


def reads_reason(sent: Sent) -> bool:
    """Whether it gets as far as a reason, which is not UTF-8."""
    well_formed = sent.masked and sent.final and not sent.reserved and sent.size <= 125
    return well_formed and not is_utf8(sent.payload[2:])


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def may_begin_text(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def compare(conversation: list[Sent], pieces: int = 1 << 30, limit: int = LIMIT) -> list[Outcome]:
    """Give a conversation to all three, until one of them has read enough."""
    ours, wsproto, websockets = Ours(limit, pieces), Wsproto(), Websockets(limit)
    outcomes: list[Outcome] = []
    for sent in conversation:
        expected = says_wsproto(ours, sent), says_websockets(ours, sent)
        outcome = ours.parse(sent)
        assert (wsproto.parse(sent), websockets.parse(sent)) == expected, (sent, outcome)
        outcomes.append(outcome)
        closed = any(opcode == CLOSE for opcode, _ in outcome.received)
        assert ours.parser.stopped == (closed or outcome.refused is not None)
        if ours.parser.stopped or any(each.refused for each in expected):
            break
    return outcomes


# -- what clients of good will send

masks = st.binary(min_size=4, max_size=4)
pieces = st.sampled_from([1, 2, 3, 7, 64, 1 << 30])
texts = st.text(max_size=60).map(str.encode)
blobs = st.binary(max_size=LIMIT)
at_an_edge = st.sampled_from([125, 126, 127, LIMIT]).map(bytes)
whole_messages = st.tuples(st.just(TEXT), texts) | st.tuples(st.just(BINARY), blobs | at_an_edge)
tokens = st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)
pings = st.builds(
    Sent,
    st.sampled_from([PING, PONG]),
    st.binary(max_size=125) | tokens,
    mask=masks,
    form=st.just(0),
)
good_closes = st.just(b"") | st.builds(
    lambda code, reason: struct.pack("!H", code) + reason.encode(),
    st.sampled_from([1000, 1001, 1003, 1007, 1011, 3000, 4999]),
    st.text(max_size=30),
)


@st.composite
def messages(draw: st.DrawFn) -> list[Sent]:
    """One message in fragments, cut inside characters too, with pings between them."""
    opcode, payload = draw(whole_messages)
    marks = draw(st.lists(st.integers(0, len(payload)), max_size=4))
    bounds = [0, *sorted(marks), len(payload)]
    parts = [payload[start:end] for start, end in itertools.pairwise(bounds)]
    frames: list[Sent] = []
    for number, part in enumerate(parts, 1):
        kind = opcode if number == 1 else CONTINUATION
        frames += [Sent(kind, part, final=number == len(parts), mask=draw(masks))]
        if number < len(parts):
            frames += draw(st.lists(pings, max_size=1))
    return frames


conversations = st.lists(messages() | pings.map(lambda ping: [ping]), max_size=5).map(
    lambda groups: [frame for group in groups for frame in group]
)


@given(conversations, good_closes, pieces)
def test_what_is_right_is_taken_the_same_by_all(
    conversation: list[Sent], close: bytes, pieces: int
) -> None:
    ours = Ours(pieces=pieces)
    for sent in conversation:
        assert ours.but().parse(sent).refused is None
        ours.parse(sent)
    outcomes = compare([*conversation, Sent(CLOSE, close)], pieces)
    crowded = len(outcomes) <= len(conversation)  # pings counted as part of a message
    assert crowded or outcomes[-1] == Outcome(((CLOSE, close),))


# -- what others send

odd_payloads = (
    st.sampled_from([b"\xff", b"\xc3", b"a\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x03", b"\x03\xee"])
    | st.builds(struct.pack, st.just("!H"), st.integers(0, 65_535))
    | st.binary(max_size=130)
    | st.sampled_from([LIMIT, LIMIT + 1]).map(bytes)
)
odd_frames = st.builds(
    Sent,
    st.integers(0, 15),
    odd_payloads,
    final=st.booleans(),
    reserved=st.sampled_from([0, 0, 0, 1, 2, 4, 7]),
    masked=st.sampled_from([True] * 9 + [False]),
    form=st.sampled_from([0, 0, 0, 16, 64]),
    mask=masks,
)
likely_frames = st.builds(
    Sent,
    st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING]),
    odd_payloads | texts,
    final=st.booleans(),
)


@given(st.lists(messages() | (odd_frames | likely_frames).map(lambda frame: [frame])), pieces)
def test_what_is_wrong_is_refused_alike_but_for_what_is_listed(
    groups: list[list[Sent]], pieces: int
) -> None:
    compare([frame for group in groups for frame in group], pieces)


@given(
    conversations,
    st.integers(0, 30),
    st.sampled_from(["opcode", "final", "reserved", "masked", "form", "payload"]),
    st.integers(0, 15),
    odd_payloads,
)
def test_a_conversation_with_one_thing_changed_is_parsed_alike(
    conversation: list[Sent], place: int, changed: str, value: int, payload: bytes
) -> None:
    if not conversation:
        return
    place %= len(conversation)
    sent = conversation[place]
    values: dict[str, Any] = {
        "opcode": value,
        "final": not sent.final,
        "reserved": value % 8,
        "masked": False,
        "form": (16, 64)[value % 2],
        "payload": payload,
    }
    broken = attrs.evolve(sent, **{changed: values[changed]})
    compare([*conversation[:place], broken, *conversation[place + 1 :]])


@given(
    st.sampled_from(KNOWN),
    st.sampled_from([126, LIMIT + 1, 65_535, 65_536, 1 << 20, 1 << 40, ENDLESS - 1]),
    st.booleans(),
)
def test_a_header_that_claims_too_much_is_refused_before_any_of_it_comes(
    opcode: int, claimed: int, in_a_message: bool
) -> None:
    """wsproto, which has no largest size, would wait for all of it."""
    ours, websockets = Ours(), Websockets()
    if in_a_message:
        for each in (ours, websockets):
            each.parse(Sent(BINARY, b"begun", final=False))
    header = attrs.evolve(Sent(opcode), claimed=claimed)
    right = opcode in (TEXT, BINARY) if not in_a_message else opcode == CONTINUATION
    ours_says = ours.parse(header).refused
    if right:
        assert ours_says == (1009 if claimed > LIMIT else None)
    else:
        assert ours_says == 1002
    room = LIMIT - 5 * in_a_message
    assert websockets.parse(header).refused == (1009 if claimed > room else None)


# -- where they differ

BEGUN, BEGUN_TEXT = Sent(BINARY, b"begun", final=False), Sent(TEXT, b"begun", final=False)
DIFFERENCES: dict[str, tuple[list[Sent], int | None, int | None, int | None]] = {
    "a length longer than need be": ([Sent(TEXT, b"a", form=16)], 1002, 1002, None),
    "larger than any message": ([Sent(BINARY, bytes(LIMIT + 1))], 1009, None, 1009),
    "fragments larger together": (
        [BEGUN, Sent(CONTINUATION, bytes(LIMIT))], 1009, None, 1009
    ),
    "too large and wrong": ([Sent(BINARY, bytes(LIMIT + 1), reserved=4)], 1002, 1002, 1009),
    "too large and never begun": ([Sent(CONTINUATION, bytes(LIMIT + 1))], 1002, 1002, 1009),
    "too large for a control": ([Sent(PING, bytes(LIMIT + 1))], 1002, 1002, 1009),
    "a ping where little is missing": (
        [Sent(BINARY, bytes(LIMIT), final=False), Sent(PING, b"a")], None, None, 1009
    ),
    "a Close inside a message": ([BEGUN, Sent(CLOSE)], None, None, 1002),
    "a Close for a bad gateway": ([Sent(CLOSE, BAD_GATEWAY)], 1002, 1002, None),
    "a Close with neither code nor reason": ([Sent(CLOSE, b"\0\0\xff")], 1002, 1002, 1007),
    "a fragment that cannot become text": (
        [BEGUN_TEXT, Sent(CONTINUATION, b"\xff", final=False)], None, 1007, None
    ),
}  # fmt: skip
"""Frames, and what ours, wsproto and `websockets` refuse the last one with."""


@pytest.mark.parametrize("name", DIFFERENCES)
def test_they_differ_as_listed(name: str) -> None:
    conversation, *refusals = DIFFERENCES[name]
    last = [
        [parser.parse(sent) for sent in conversation][-1].refused
        for parser in (Ours(), Wsproto(), Websockets())
    ]
    assert last == refusals
    assert len(set(refusals)) > 1
    compare(conversation)


@pytest.mark.parametrize("code", [*range(995, 1020), 1999, 2999, 3000, 4999, 5000, 0, 65_535])
@pytest.mark.parametrize("reason", [b"", b"why", b"\xff", b"\xc3"])
def test_every_close_is_parsed_alike(code: int, reason: bytes) -> None:
    compare([Sent(CLOSE, struct.pack("!H", code) + reason)])


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("opcode", range(16))
@pytest.mark.parametrize("begun", [None, BEGUN, BEGUN_TEXT])
def test_every_opcode_is_parsed_alike_everywhere(
    opcode: int, final: bool, begun: Sent | None
) -> None:
    for reserved in range(8):
        for masked in (True, False):
            frame = Sent(opcode, b"a", final=final, reserved=reserved, masked=masked)
            outcomes = compare([*([begun] if begun else []), frame])
            if reserved or not masked or (opcode in CONTROLS and not final):
                assert outcomes[-1] == Outcome((), 1002)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_534, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("form", [0, 16, 64])
@pytest.mark.parametrize("over", [0, 1])
def test_every_form_of_a_length_is_parsed_alike(size: int, form: int, over: int) -> None:
    frames = [Sent(TEXT, b"\xc3", final=False), Sent(CONTINUATION, b"\xa9" * bool(size), form=form)]
    whole = Sent(BINARY, bytes(range(256)) * (size // 256) + bytes(size % 256), form=form)
    for conversation in ([whole, Sent(CLOSE)], frames):
        for pieces in (1 << 30, 1000, 16_384):
            compare(conversation, pieces, limit=max(2, size - over))
