from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.workers.messages import (
    LENGTH_BYTES,
    MAX_ORDER_BYTES,
    Ask,
    Attempted,
    Bans,
    Beat,
    Control,
    ControlError,
    ControlReader,
    CrowdOut,
    Drain,
    EndConnection,
    EndElsewhere,
    Gathered,
    GatheredAnswer,
    Known,
    KnownTokens,
    Left,
    LogBan,
    Ready,
    Receive,
    Received,
    Relocate,
    Rotate,
    Settled,
    Take,
    Told,
    Took,
    pack,
)

ORDERS = [
    Take(7, 12.5, "192.0.2.1:4711"),
    Drain(10.0),
    Rotate(),
    CrowdOut(7),
    Bans({"6b65": 60.0}),
    KnownTokens({"6b65": 0.0}),
    LogBan("6b65"),
    Receive(7, "front-door", b"viewer"),
    Settled(7, yours=True),
    EndConnection(7, revoked=False),
    Gathered(3, [GatheredAnswer(1, b"x"), GatheredAnswer(2, None, late=True)], {"ready": 2}, b"e"),
]
NEWS = [
    *(Ready("0a1b"), Took(7), Known(7), Left(7), Beat(b"totals"), Ask(1, "stats"), Told(1, None)),
    Attempted("6b65", "746f", good=False),
    *(Relocate(7, "0a1b", "front-door", b"viewer"), Received(7, is_ready=False)),
    EndElsewhere(7, revoked=True),
]


@given(st.lists(st.integers(1, 40), max_size=80))
def test_messages_arrive_whole_however_they_are_torn(sizes: list[int]) -> None:
    packed = b"".join(map(pack, ORDERS))
    reader = ControlReader.of_orders()
    found: list[Control] = []
    for size in sizes:
        found += reader.feed(packed[:size])
        packed = packed[size:]
    found += reader.feed(packed)
    assert found == ORDERS


def test_news_of_a_worker_are_no_orders_to_one() -> None:
    assert list(ControlReader.of_news().feed(b"".join(map(pack, NEWS)))) == NEWS
    with pytest.raises(ControlError):
        list(ControlReader.of_orders().feed(pack(Ready("0a1b"))))


def test_a_message_that_is_too_large_is_an_error_before_it_is_there() -> None:
    length = (MAX_ORDER_BYTES + 1).to_bytes(LENGTH_BYTES, "big")
    with pytest.raises(ControlError):
        list(ControlReader.of_news().feed(length))


def test_a_message_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(ControlError):
        pack(Beat(bytes(MAX_ORDER_BYTES)))


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_incomplete(data: bytes) -> None:
    framed = len(data).to_bytes(LENGTH_BYTES, "big") + data
    for garbage in (data, framed):
        try:
            found = list(ControlReader.of_orders().feed(garbage))
        except ControlError:
            continue
        assert all(isinstance(each, Control) for each in found)
