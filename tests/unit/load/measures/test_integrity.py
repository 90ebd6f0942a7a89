"""The mark of each frame, and the checks of received frames and alerts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.reconciliation.integrity import (
    MARK_SIZE,
    AlertChecker,
    FrameChecker,
    FrameMark,
    append_mark,
    count_missing,
    read_mark,
    seal_mark,
)

RUN = b"run-1234"


def mark(number: int, *, stream: int = 0, connection: int = 1, run: bytes = RUN) -> FrameMark:
    return FrameMark(run, stream, connection, number, number / 10)


def frame(number: int, *, stream: int = 0, connection: int = 1, run: bytes = RUN) -> bytes:
    return append_mark(b"picture", mark(number, stream=stream, connection=connection, run=run))


def layer_frame(
    number: int, layer: int | None = None, base: int | None = None, connection: int = 1
) -> bytes:
    about = FrameMark(RUN, 0, connection, number, number / 10, layer, base)
    return append_mark(b"picture", about)


def check_layers(frames: Iterable[tuple[bytes, int, str | None]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    checker = FrameChecker(RUN, 0, counts, ("l", "m"))
    for data, seq, layer in frames:
        checker.check(data, seq, layer)
    return +counts


def check(frames: Iterable[tuple[bytes, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    checker = FrameChecker(RUN, 0, counts)
    for data, seq in frames:
        checker.check(data, seq)
    return +counts


@given(
    st.binary(max_size=300),
    st.integers(0, 1 << 30),
    st.integers(1, 1 << 30),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(1, 1 << 30),
)
def test_a_sealed_frame_begins_with_its_body_and_tells_its_mark(
    body: bytes, stream: int, number: int, layer: int | None, base: int | None
) -> None:
    given_mark = FrameMark(RUN, stream, 3, number, 12.345678, layer, base)
    data = append_mark(body, given_mark)
    assert data[: len(body)] == body
    assert len(data) == len(body) + MARK_SIZE
    assert read_mark(memoryview(data)) == given_mark


@given(st.binary(min_size=1, max_size=100), st.data())
def test_no_frame_with_a_bit_turned_or_a_byte_cut_is_whole(
    body: bytes, data: st.DataObject
) -> None:
    sealed = bytearray(append_mark(body, mark(1)))
    at = data.draw(st.integers(0, len(sealed) - 1))
    assert read_mark(bytes(sealed[:at])) is None
    assert read_mark(bytes(sealed[at + 1 :])) is None
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    assert read_mark(bytes(sealed)) is None


def test_frames_in_order_are_received_and_nothing_else() -> None:
    assert check((frame(n), n) for n in range(5, 9)) == {"received": 4}


def test_a_gap_that_seq_shows_is_missed_and_one_that_it_hides_is_lost() -> None:
    assert check([(frame(1), 1), (frame(5), 5)]) == {"received": 2, "missed": 3}
    assert check([(frame(1), 1), (frame(5), 2)]) == {"received": 2, "lost": 3}
    assert check([(frame(1), 1), (frame(5), 3)]) == {"received": 2, "lost": 2, "missed": 1}


def test_what_a_phone_sent_into_a_broken_connection_is_missed_and_not_lost() -> None:
    assert check([(frame(1), 1), (frame(5, connection=2), 1)]) == {"received": 2, "missed": 3}


def test_the_same_frame_again_is_doubled_also_much_later() -> None:
    assert check([(frame(1), 1), (frame(1), 1)]) == {"received": 2, "doubled": 1}
    many = [(frame(n), n) for n in range(1, 100)]
    assert check([*many, (frame(1), 1)]) == {"received": 100, "doubled": 1}


def test_a_frame_that_comes_late_is_out_of_order_and_no_longer_missing() -> None:
    found = check([(frame(1), 1), (frame(3), 3), (frame(2), 2), (frame(4), 4)])
    assert found == {"received": 4, "disordered": 1}
    again = check([(frame(1), 1), (frame(3), 3), (frame(2), 2), (frame(2), 2)])
    assert again == {"received": 4, "disordered": 1, "doubled": 1}


def test_a_frame_of_another_stream_or_run_is_foreign_and_a_broken_one_torn() -> None:
    assert check([(frame(1, stream=1), 1)]) == {"received": 1, "foreign": 1}
    assert check([(frame(1, run=b"run-5678"), 1)]) == {"received": 1, "foreign": 1}
    assert check([(b"", 1), (b"x" * 100, 2)]) == {"received": 2, "torn": 2}


def test_a_viewer_that_changes_its_layer_from_picture_to_picture_misses_nothing() -> None:
    frames = [(layer_frame(1, 0), 1, "l"), (layer_frame(2, 1), 2, "m"), (layer_frame(3, 0), 3, "l")]
    assert check_layers(frames) == {"received": 3}


def test_two_layers_of_one_picture_are_one_too_many() -> None:
    frames = [(layer_frame(1, 0), 1, "l"), (layer_frame(1, 1), 1, "m")]
    assert check_layers(frames) == {"received": 2, "doubled": 1}
    as_one = [(layer_frame(1, 0), 1, "l"), (layer_frame(2, 1), 1, "m")]
    assert check_layers(as_one) == {"received": 2, "doubled": 1}
    other_epoch = [(layer_frame(1, 0), 1, "l"), (layer_frame(2, 1, connection=2), 1, "m")]
    assert check_layers(other_epoch) == {"received": 2}


@pytest.mark.parametrize("label", ["l", "x", None])
def test_a_frame_that_came_as_another_layer_than_it_is_was_mislabeled(label: str | None) -> None:
    assert check_layers([(layer_frame(1, 1), 1, label)]) == {"received": 1, "mislabeled": 1}
    assert check_layers([(layer_frame(1, 7), 1, label)])["mislabeled"] == 1
    assert check_layers([(layer_frame(1, 1), 1, "m")])["mislabeled"] == 0


def test_a_frame_of_a_stream_without_layers_comes_as_none() -> None:
    assert check_layers([(layer_frame(1), 1, None)]) == {"received": 1}
    assert check_layers([(layer_frame(1), 1, "l")])["mislabeled"] == 1


JPEG = b"\xff\xd8 smaller \xff\xd9"


def check_renditions(frames: Iterable[tuple[bytes, int, str | None, str | None]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    checker = FrameChecker(RUN, 0, counts)
    for data, seq, layer, sealed_mark in frames:
        checker.check(data, seq, layer, sealed_mark)
    return +counts


def test_a_smaller_picture_by_the_relay_is_known_by_the_mark_in_its_metadata() -> None:
    sealed = [seal_mark(mark(number)) for number in range(6)]
    frames = [
        (frame(1), 1, None, None),
        (JPEG, 2, "320", sealed[2]),
        (JPEG, 4, "640", sealed[4]),
        (frame(5), 5, None, None),
    ]
    assert check_renditions(frames) == {"received": 4, "missed": 1, "skipped": 1}


def test_a_smaller_picture_beside_its_original_or_of_another_stream_is_noticed() -> None:
    first = (frame(1), 1, None, None)
    beside = (JPEG, 1, "320", seal_mark(mark(1)))
    assert check_renditions([first, beside]) == {"received": 2, "doubled": 1}
    foreign = (JPEG, 1, "320", seal_mark(mark(1, stream=1)))
    assert check_renditions([foreign]) == {"received": 1, "foreign": 1}


@pytest.mark.parametrize(
    ("data", "layer", "sealed_mark"),
    [
        (JPEG[:-1], "320", seal_mark(mark(1))),
        (JPEG[1:], "320", seal_mark(mark(1))),
        (JPEG, "320", None),
        (JPEG, "320", "not base64"),
        (JPEG, "320", seal_mark(mark(1))[:-8]),
        (JPEG, "321", seal_mark(mark(1))),
        (JPEG, None, seal_mark(mark(1))),
    ],
)
def test_what_is_no_whole_picture_with_a_whole_mark_is_torn(
    data: bytes, layer: str | None, sealed_mark: str | None
) -> None:
    assert check_renditions([(data, 1, layer, sealed_mark)]) == {"received": 1, "torn": 1}


def test_a_phone_with_layers_of_its_own_has_no_renditions() -> None:
    counts: Counter[str] = Counter()
    FrameChecker(RUN, 0, counts, ("320",)).check(JPEG, 1, "320", seal_mark(mark(1)))
    assert +counts == {"received": 1, "torn": 1}


def test_a_frame_that_says_a_rendition_and_is_the_original_was_mislabeled() -> None:
    original = (frame(1), 1, "320", seal_mark(mark(1)))
    assert check_renditions([original]) == {"received": 1, "mislabeled": 1}


def test_a_delta_can_be_decoded_behind_what_it_builds_on_only() -> None:
    whole = [layer_frame(1), layer_frame(2, base=1), layer_frame(3, base=2), layer_frame(4)]
    assert check_layers((data, n, None) for n, data in enumerate(whole)) == {"received": 4}
    first = [(layer_frame(2, base=1), 2, None)]
    assert check_layers(first) == {"received": 1, "undecodable": 1}
    gap = [(layer_frame(1), 1, None), (layer_frame(3, base=2), 3, None)]
    assert check_layers(gap) == {"received": 2, "missed": 1, "undecodable": 1}
    onward = [*gap, (layer_frame(4, base=3), 4, None), (layer_frame(5), 5, None)]
    assert check_layers(onward) == {"received": 4, "missed": 1, "undecodable": 2}


def test_a_delta_builds_on_no_frame_of_another_layer_or_connection() -> None:
    other_layer = [(layer_frame(1, 0), 1, "l"), (layer_frame(2, 1, base=1), 2, "m")]
    assert check_layers(other_layer) == {"received": 2, "undecodable": 1}
    switched = [(layer_frame(1, 0), 1, "l"), (layer_frame(2, 1), 2, "m")]
    behind = [*switched, (layer_frame(3, 1, base=2), 3, "m")]
    assert check_layers(behind) == {"received": 3}
    reconnected = [(layer_frame(1), 1, None), (layer_frame(2, base=1, connection=2), 2, None)]
    assert check_layers(reconnected) == {"received": 2, "undecodable": 1}


def test_a_checker_remembers_a_bounded_number_of_gaps() -> None:
    counts: Counter[str] = Counter()
    checker = FrameChecker(RUN, 0, counts)
    for n in range(1, 100_000, 1000):
        checker.check(frame(n), n)
    checker.check(frame(10_000_000), 10_000_000)
    assert len(checker._gaps) <= 4096
    assert counts["missed"] == 10_000_000 - 101


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2, 3], {"alerts.received": 3}),
        ([1, 2, 2, 1], {"alerts.received": 2, "alerts.doubled": 2}),
        ([1, 3, 2], {"alerts.received": 3, "alerts.disordered": 1}),
        ([4, 6, 6], {"alerts.received": 2, "alerts.doubled": 1}),
    ],
)
def test_alerts_are_counted_once_each(numbers: list[int], expected: dict[str, int]) -> None:
    counts: Counter[str] = Counter()
    checker = AlertChecker(counts)
    for number in numbers:
        checker.check(number)
    assert counts == expected


def test_missing_numbers_are_counted_within_a_range() -> None:
    assert count_missing([(1, 3), (6, 9)], 2, 8) == 2
    assert count_missing([], 5, 7) == 3
    assert count_missing([(1, 9)], 5, 4) == 0
