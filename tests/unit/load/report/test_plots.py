"""What the plots of a load test show of a run that has more seconds than a plot has points."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.load.report.plots import (
    MAX_POINTS,
    Series,
    plot,
    thinned,
)

SECONDS = 20_000


def test_one_bad_second_of_a_long_run_is_drawn() -> None:
    for bad in (0, 1, 777, SECONDS - 1):
        values: list[float | None] = [1.0] * SECONDS
        values[bad] = 100.0
        assert bad in thinned(values)
    assert "L" in plot(range(SECONDS), [Series("max", values)], "ms", {})


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=5 * MAX_POINTS))
def test_lowest_and_highest_stay_and_the_number_of_points_is_bounded(
    values: list[float | None],
) -> None:
    chosen = list(thinned(values))
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= MAX_POINTS + 2
    measured = [value for value in values if value is not None]
    drawn = [value for i in chosen if (value := values[i]) is not None]
    assert (not measured and not drawn) or (min(drawn), max(drawn)) == (
        min(measured),
        max(measured),
    )


def test_a_gap_stays_a_gap() -> None:
    values: list[float | None] = [1.0] * 10_000 + [None] * 5_000 + [1.0] * 10_000
    assert any(values[i] is None for i in thinned(values))


def test_a_value_between_two_gaps_is_a_dot() -> None:
    svg = plot([1, 2, 3], [Series("max", [None, 5.0, None])], "ms", {})
    assert "h0" in svg
