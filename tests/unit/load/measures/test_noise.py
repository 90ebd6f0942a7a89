"""What is said of two runs: seldom that equal ones differ, always that a doubled age is seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.load.measures.analysis.noise import (
    MAX_BLOCKS,
    Judgement,
    block_ranges,
    paired_percentiles,
    paired_quotients,
    student_t,
)
from relay.load.measures.histogram import HdrHistogram

PAIRS = 80
MAX_CALLED_DIFFERENT = 8
"""Of `PAIRS`. With 5%, more than so many come up in 2% of all seeds; this one is fixed."""
FIGURES = 12
"""As many figures as a scenario with four groups of viewers has."""


def ages(
    random: Random, seconds: int, *, scale: float = 1.0, stalls: float = 0.0, frames: int = 20
) -> list[HdrHistogram]:
    """Ages around 5 ms: each frame differs, each second too, and some seconds stall."""
    made = []
    for _ in range(seconds):
        level = scale * 5000 * math.exp(random.gauss(0, 0.1))
        level *= 10 if random.random() < stalls else 1
        histogram = HdrHistogram()
        for _ in range(frames):
            histogram.record(int(level * math.exp(random.gauss(0, 0.4))))
        made.append(histogram)
    return made


@pytest.mark.parametrize(
    ("percent", "seconds", "stalls"),
    [(50.0, 10, 0.0), (99.0, 30, 0.0), (99.0, 30, 0.05)],
    ids=["short", "usual", "stalls"],
)
def test_two_runs_of_the_same_are_seldom_called_different(
    percent: float, seconds: int, stalls: float
) -> None:
    """Even if no change at all is tolerated."""
    random = Random(7)
    verdicts = Counter(
        paired_percentiles(
            ages(random, seconds, stalls=stalls), ages(random, seconds, stalls=stalls), percent
        )
        .judge(0.0)
        .verdict
        for _ in range(PAIRS)
    )
    assert verdicts["worse"] + verdicts["better"] <= MAX_CALLED_DIFFERENT
    assert verdicts.total() == PAIRS


@pytest.mark.parametrize(("percent", "frames"), [(50.0, 20), (99.0, 200)])
def test_a_doubled_age_is_always_seen_in_30_seconds(percent: float, frames: int) -> None:
    random = Random(1)
    for _ in range(8):
        before, after = ages(random, 30, frames=frames), ages(random, 30, scale=2, frames=frames)
        limit = math.log(1.2)
        worse = paired_percentiles(before, after, percent).judge(limit, figures=FIGURES)
        assert worse.verdict == "worse"
        assert worse.change == pytest.approx(math.log(2), abs=0.5)
        better = paired_percentiles(after, before, percent).judge(limit, figures=FIGURES)
        assert better.verdict == "better"


def test_a_change_within_the_tolerance_is_not_worse() -> None:
    random = Random(3)
    before, after = ages(random, 60, frames=200), ages(random, 60, scale=1.05, frames=200)
    assert paired_percentiles(before, after, 50.0).judge(math.log(1.5)).verdict == "not worse"


def test_one_stall_in_one_of_the_runs_is_not_called_a_change() -> None:
    random = Random(5)
    before, after = ages(random, 30), ages(random, 30)
    for _ in range(20):
        after[11].record(2_000_000)
    assert paired_percentiles(before, after, 99.0).judge(0.0).verdict == "cannot tell"


@given(st.integers(1, 100_000))
def test_blocks_are_all_seconds_once_in_order_and_of_nearly_the_same_length(seconds: int) -> None:
    blocks = block_ranges(seconds)
    assert [blocks[0].start, blocks[-1].stop] == [0, seconds]
    assert all(one.stop == other.start for one, other in pairwise(blocks))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    assert len(blocks) <= MAX_BLOCKS


@given(st.lists(st.lists(st.integers(0, 5_000_000), min_size=1, max_size=9), min_size=2))
def test_a_percentile_of_blocks_is_that_of_all_their_times(seconds: list[list[int]]) -> None:
    histograms, whole = [], HdrHistogram()
    for times in seconds:
        histograms.append(HdrHistogram())
        for time in times:
            histograms[-1].record(time)
        whole.add(histograms[-1])
    for percent in (1.0, 50.0, 99.0, 100.0):
        blocks = paired_percentiles(histograms, histograms, percent)
        assert blocks.measure(range(blocks.number)) == max(1, whole.value_at(percent))


def judged_shares(before: Sequence[float], after: Sequence[float]) -> Judgement:
    """Parts of 100."""
    old, new = ([(each, 100.0) for each in run] for run in (before, after))
    return paired_quotients(old, new, is_ratio=False).judge(0.001)


def test_a_share_that_was_nothing_may_grow() -> None:
    assert judged_shares([0.0] * 30, [0.0] * 30).verdict == "not worse"
    assert judged_shares([0.0] * 30, [5.0] * 30).verdict == "worse"
    assert judged_shares([5.0] * 30, [0.0] * 30).verdict == "better"
    assert judged_shares([0.0] * 30, [0.0] * 29 + [90.0]).verdict == "cannot tell"


def test_what_is_nothing_has_no_ratio() -> None:
    nothing = [(0.0, 1.0)] * 30
    assert paired_quotients(nothing, nothing, is_ratio=True).judge(0.1).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("freedom", "outside", "value"),
    [(1, 0.05, 12.706), (2, 0.05, 4.303), (9, 0.05, 2.262), (9, 0.005, 3.690), (59, 0.05, 2.001)],
)
def test_students_t_is_that_of_the_tables(freedom: int, outside: float, value: float) -> None:
    assert student_t(outside, freedom) == pytest.approx(value, abs=0.001)
