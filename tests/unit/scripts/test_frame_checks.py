"""The eyes of scripts/stress.py: they notice everything that a relay must not do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.stress.frame_checks import (
    Content,
    Failed,
    Record,
    Sight,
)


def see(sight: Sight, seq: int, number: int | None = None, phone: int = 1, **fields: Any) -> None:
    content = Content(sight.stream, phone, seq if number is None else number)
    sight.see({"seq": seq, **fields}, content.pack(100))


def test_what_is_right_is_seen() -> None:
    sight = Sight(7, Record())
    for seq in (3, 4, 6, 9):
        see(sight, seq)
    see(sight, 10, number=1, phone=2)
    see(sight, 12, number=3, phone=2)
    assert sight.record.frames == 6


@pytest.mark.parametrize("place", [0, 11, 50, 100, -1])
def test_a_flipped_bit_is_noticed(place: int) -> None:
    data = bytearray(Content(7, 1, 1).pack(100))
    data[place] ^= 1
    with pytest.raises(Failed, match="damaged"):
        Sight(7, Record()).see({"seq": 1}, bytes(data))


@pytest.mark.parametrize("data", [b"", b"abc", Content(7, 1, 1).pack(100)[:-1]])
def test_a_short_frame_is_noticed(data: bytes) -> None:
    with pytest.raises(Failed, match="damaged"):
        Sight(7, Record()).see({"seq": 1}, data)


def test_a_frame_of_another_stream_is_noticed() -> None:
    with pytest.raises(Failed, match="stream 7"):
        Sight(7, Record()).see({"seq": 1}, Content(8, 1, 1).pack(0))


@pytest.mark.parametrize("seq", [4, 5])
def test_a_frame_that_comes_twice_or_late_is_noticed(seq: int) -> None:
    sight = Sight(7, Record())
    see(sight, 5)
    with pytest.raises(Failed, match="after seq 5"):
        see(sight, seq)


def test_a_frame_of_a_phone_that_was_taken_over_is_noticed() -> None:
    sight = Sight(7, Record())
    see(sight, 5, phone=2)
    with pytest.raises(Failed, match="after seq 5"):
        see(sight, 6, phone=1)


def test_a_seq_that_another_viewer_saw_on_another_frame_is_noticed() -> None:
    record = Record()
    see(Sight(7, record), 5, number=5)
    with pytest.raises(Failed, match="another one there"):
        see(Sight(7, record), 6, number=5)


def test_a_gap_where_nothing_may_be_missing_is_noticed() -> None:
    sight = Sight(7, Record(), lossless=True)
    see(sight, 5)
    see(sight, 6)
    with pytest.raises(Failed, match="may be missing"):
        see(sight, 8)


@pytest.mark.parametrize("seqs", [(5,), (1, 3)])
def test_a_delta_without_its_base_is_noticed(seqs: tuple[int, ...]) -> None:
    sight = Sight(7, Record())
    for seq in seqs[:-1]:
        see(sight, seq, keyframe=True)
    with pytest.raises(Failed, match="without its base"):
        see(sight, seqs[-1], keyframe=False)


def test_more_than_a_window_is_noticed() -> None:
    sight = Sight(7, Record(), window=2)
    see(sight, 1)
    see(sight, 2)
    sight.unacknowledged.clear()
    see(sight, 3)
    see(sight, 4)
    with pytest.raises(Failed, match="window of 2"):
        see(sight, 5)
