"""Pauses double up to a bound, and begin again after a success."""

from __future__ import annotations

import pytest

from relay.concurrency.backoff import Backoff, pause_after


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_after_a_reset_it_begins_again() -> None:
    backoff = Backoff(0.5, 3.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 0.5


@pytest.mark.parametrize("failures", [31, 5000, 1 << 40])
def test_failures_may_go_on_for_ever(failures: int) -> None:
    assert pause_after(failures, first=0.1, longest=900.0) == 900.0
