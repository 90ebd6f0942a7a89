"""How well the clock of another machine is known."""

from __future__ import annotations

import math
from random import Random

import pytest

from relay.load.run.agents.clocks import MAX_DRIFT, ClockComparison, ClockFilter


def probe(sent: float, up: float, down: float, offset: float) -> ClockComparison:
    """A round trip of `up` and `down` seconds to a clock that is ahead by `offset`."""
    return ClockComparison.of(sent, sent + up + offset, sent + up + down)


def test_a_comparison_is_wrong_by_half_of_the_round_trip_at_most() -> None:
    random = Random(1)
    for _ in range(1000):
        up, down, offset = random.random(), random.random(), random.uniform(-1e6, 1e6)
        found = probe(random.uniform(0, 1e6), up, down, offset)
        assert abs(found.offset - offset) <= found.error + 1e-9
        assert found.error == pytest.approx((up + down) / 2)


def test_the_fastest_round_trip_counts_and_its_error_is_stated() -> None:
    clock = ClockFilter()
    assert clock.error(0.0) == math.inf
    for number, trip in enumerate((0.2, 0.002, 0.3)):
        clock.add(probe(number / 10, trip / 2, trip / 2, 1000.0))
    clock.begin(0.5)
    assert clock.offset == pytest.approx(1000.0)
    assert 0.001 <= clock.worst_error < 0.0011


def test_a_clock_that_may_be_right_is_left_alone() -> None:
    clock = ClockFilter()
    clock.add(probe(0.0, 0.001, 0.003, 50.0))  # looks like 49.999
    clock.begin(0.1)
    clock.add(probe(1.0, 0.003, 0.001, 50.0))  # looks like 50.001
    assert not clock.correct(1.1)
    assert clock.offset == pytest.approx(49.999)
    assert clock.worst_error < 0.005


def test_a_clock_that_runs_away_is_followed_and_its_error_stays_small() -> None:
    clock, drift = ClockFilter(), MAX_DRIFT / 2
    clock.add(probe(0.0, 0.0005, 0.0005, 10.0))
    clock.begin(0.0)
    corrections = 0
    for second in range(1, 3600):
        clock.add(probe(second, 0.0005, 0.0005, 10.0 + second * drift))
        corrections += clock.correct(second + 0.001)
        real = 10.0 + second * drift
        assert abs(clock.offset - real) <= clock.worst_error
    assert corrections > 10
    assert clock.worst_error < 0.003
    assert clock.compared < 100


def test_nothing_is_corrected_before_the_clock_is_in_use() -> None:
    clock = ClockFilter()
    clock.add(probe(0.0, 0.001, 0.001, 50.0))
    assert not clock.correct(0.1)
    assert clock.offset == 0.0
