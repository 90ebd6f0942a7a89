"""The figures of scripts/thin_link_report.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "scripts"
BEGAN = 1000.0


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("thin_link_report")
    del sys.modules["thin_link_report"]


Figures = Callable[..., Any]


@pytest.fixture
def figures(report: ModuleType) -> Figures:
    """Make the row of a link, of 30 s, from when pictures arrived and how old they were."""

    def row_of(mbits: Sequence[float], ages: Sequence[tuple[float, float]], **case: Any) -> Any:
        link = report.Case("link", tuple(mbits), "plain", **case)
        arrivals = report.Arrivals()
        for at, age in ages:
            arrivals.add(BEGAN + at, age)
        times = {"began": BEGAN, "seconds": 30.0, "megabit_second": 0.5, "round_trip": 0.04}
        (row,) = report.rows_of("relay", {link: arrivals}, **times)
        return row

    return row_of


def test_rates_and_ages_are_those_of_the_whole_time_and_of_its_thirds(figures: Figures) -> None:
    row = figures([1], [(at / 2, at // 20) for at in range(60)])
    assert row.whole.pictures_per_second == 2
    assert (row.whole.age_p50_ms, row.whole.age_p99_ms) == (1000, 2000)
    assert [third.age_p50_ms for third in row.thirds] == [0, 1000, 2000]
    assert [third.pictures_per_second for third in row.thirds] == [2, 2, 2]


def test_what_arrives_before_the_begin_or_behind_the_end_does_not_count(figures: Figures) -> None:
    row = figures([1], [(-0.1, 9), (0, 1), (30, 9)])
    assert row.whole.pictures_per_second == pytest.approx(1 / 30)
    assert row.whole.age_p99_ms == 1000


def test_a_link_over_which_nothing_comes_has_no_age(figures: Figures) -> None:
    row = figures([5, 0.5, 5], [(1, 0.1)])
    assert [third.age_p50_ms for third in row.thirds] == [100, None, None]
    assert row.back_seconds is None


def test_the_aim_is_the_time_on_the_wire_and_some_more_and_the_round_trip(
    figures: Figures,
) -> None:
    assert figures([1], []).whole.aim_ms == pytest.approx(1.15 * 500 + 40)
    aims = [third.aim_ms for third in figures([5, 0.5, 5], []).thirds]
    assert aims == pytest.approx([1.25 * 100 + 40, 1.25 * 1000 + 40, 1.25 * 100 + 40])


def test_a_phone_has_to_send_so_many_pictures_too(figures: Figures) -> None:
    row = figures([0.5], [], up=True)
    assert (row.whole.aim_ms, row.min_pictures) == (250, 8)


def test_a_link_is_back_when_a_picture_is_fresh_again(figures: Figures) -> None:
    ages = [(5, 0.1), (15, 0.1), (20.5, 2), (21.5, 0.3), (22.5, 0.16), (23, 0.1)]
    assert figures([5, 0.5, 5], ages).back_seconds == pytest.approx(2.5)
    assert figures([5], ages).back_seconds is None
