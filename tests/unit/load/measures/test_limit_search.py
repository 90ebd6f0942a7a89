"""The search for the largest load that keeps the checks."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.analysis.limit_search import LimitSearch, SearchOptions

OPTIONS = SearchOptions(start=10, least=1, most=640)


def search(
    keeps: Callable[[float], bool], options: SearchOptions = OPTIONS
) -> tuple[LimitSearch, list[float]]:
    """Search with runs that all end as `keeps` says; returns what was tried, in order."""
    made, tried = LimitSearch(options), []
    while (level := made.next()) is not None:
        tried.append(level)
        assert len(tried) < 1000
        made.note(level, kept=keeps(level))
    return made, tried


def test_it_doubles_then_halves_the_gap_and_repeats_at_the_limit() -> None:
    made, tried = search(lambda level: level <= 100)
    assert tried == [10, 20, 40, 80, 160, 120, 100, 110, 100, 100]
    assert (made.limit, made.above, made.kept_at_limit) == (100, 110, 3)
    assert made.is_closed


def test_it_goes_down_when_the_first_load_is_too_much() -> None:
    made, tried = search(lambda level: level <= 3)
    assert tried == [10, 5, 2, 3, 4, 3, 3]
    assert (made.limit, made.above) == (3, 4)


def test_it_ends_where_nothing_keeps_or_everything_does() -> None:
    made, tried = search(lambda level: False)
    assert (made.limit, made.above, tried[-1]) == (None, 1, 1)
    made, tried = search(lambda level: True)
    assert (made.limit, made.above) == (640, None)
    assert tried == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    assert made.is_closed


def test_a_load_that_fails_when_it_is_repeated_is_no_limit() -> None:
    made, runs = LimitSearch(attrs.evolve(OPTIONS, repeats=2)), 0
    while (level := made.next()) is not None:
        runs += 1
        # 80 keeps once, and never again.
        made.note(level, kept=level < 80 or (level == 80 and runs == 4))
    assert made.limit is not None
    assert made.limit < 80
    assert made.above == 80
    assert made.kept_at_limit == 2


def test_the_steps_bound_what_is_tried_but_not_the_repetitions() -> None:
    options = attrs.evolve(OPTIONS, steps=4, resolution=0.001)
    made, tried = search(lambda level: level <= 30, options)
    assert tried == [10, 20, 40, 30, 30, 30]
    assert made.limit == 30
    assert not made.is_closed


def test_rates_have_a_decimal_and_counts_have_none() -> None:
    options = attrs.evolve(OPTIONS, is_whole=False, resolution=0.01)
    made, tried = search(lambda level: level <= 12.34, options)
    assert made.limit == pytest.approx(12.34, abs=0.2)
    assert all(round(level, 1) == level for level in tried)


def test_runs_a_little_off_what_was_asked_for_do_not_keep_it_from_ending() -> None:
    """As counts of several groups are, which are rounded."""
    made = LimitSearch(attrs.evolve(OPTIONS, resolution=0.0))
    for _ in range(100):
        level = made.next()
        if level is None:
            break
        off = level + level % 2
        made.note(off, kept=off <= 33)
    assert made.next() is None
    assert made.limit is not None
    assert made.limit <= 33


def test_what_is_aimed_at_is_tried_when_the_gap_around_it_is_small_enough() -> None:
    options = attrs.evolve(OPTIONS, aim=105, repeats=1)
    made, tried = search(lambda level: level <= 106, options)
    assert tried == [10, 20, 40, 80, 160, 120, 100, 110, 105]
    assert (made.limit, made.above) == (105, 110)
    for limit in (99, 115, 700):
        made, tried = search(lambda level, limit=limit: level <= limit, options)  # type: ignore[misc]
        assert 105 not in tried


@given(
    limit=st.integers(1, 2000),
    start=st.integers(1, 500),
    resolution=st.sampled_from([0.01, 0.1, 0.3]),
)
def test_the_limit_is_found_within_the_resolution(
    limit: int, start: int, resolution: float
) -> None:
    options = SearchOptions(start=start, least=1, most=2000, resolution=resolution, steps=100)
    made, tried = search(lambda level: level <= limit, options)
    assert made.limit is not None
    assert made.limit <= limit
    assert len(tried) < 40
    if made.above is None:
        assert made.limit == 2000
    else:
        gap = made.above - made.limit
        assert made.above > limit
        assert gap <= 1 or gap <= resolution * made.above
