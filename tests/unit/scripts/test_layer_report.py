"""The figures of scripts/layer_report.py."""

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
    yield importlib.import_module("layer_report")
    del sys.modules["layer_report"]


Figures = Callable[..., Any]


@pytest.fixture
def figures(report: ModuleType) -> Figures:
    """Make the row of a link, of 30 s, from times, ages and layers of the pictures that came."""

    def row_of(pictures: Sequence[tuple[float, float, str]]) -> Any:
        seen = [
            report.Seen(BEGAN + at, number, age, layer, 1000)
            for number, (at, age, layer) in enumerate(pictures)
        ]
        link = report.PictureLink((1.0,), deep=False)
        times = {"subscribed": BEGAN - 6, "started": BEGAN, "seconds": 30.0}
        return report.row_of("layers", link, seen, **times, ssim=0.5, ended=None)

    return row_of


def test_rates_ages_and_layers_are_those_of_the_time_that_is_measured(figures: Figures) -> None:
    before, behind = [(-1.0, 9.0, "h")], [(30.0, 9.0, "h")]
    row = figures(before + [(at / 2, at // 20, "l") for at in range(60)] + behind)
    assert row.whole.pictures_per_second == 2
    assert (row.whole.age_p50_ms, row.whole.age_p99_ms) == (1000, 2000)
    assert [third.age_p50_ms for third in row.thirds] == [0, 1000, 2000]
    assert row.kbits_per_second == pytest.approx(60 * 8 / 30)
    assert (row.shares, row.switches) == ({"l": 1.0}, 0)


def test_each_picture_in_another_layer_than_the_one_before_is_a_switch(figures: Figures) -> None:
    row = figures([(at, 0.1, layer) for at, layer in enumerate("llmmmhm")])
    assert row.switches == 3
    assert row.shares == pytest.approx({"l": 2 / 7, "m": 4 / 7, "h": 1 / 7})


def test_a_viewer_is_up_to_date_with_the_first_picture_that_is_not_old(figures: Figures) -> None:
    assert figures([(-5, 0.9, "h"), (-4, 0.2, "l"), (-3, 0.1, "l")]).fresh_after == 2
    assert figures([(-5, 0.9, "h"), (1, 0.6, "l")]).fresh_after is None


def test_a_link_over_which_nothing_comes_has_no_ages(figures: Figures) -> None:
    row = figures([])
    assert (row.whole.pictures_per_second, row.whole.age_p50_ms, row.shares) == (0, None, {})


def test_the_cost_of_renditions_is_what_relay_and_worker_take_more(report: ModuleType) -> None:
    parts = [report.Spent(0.07, 0.0, 0.0), report.Spent(0.09, 0.04, 25.0)]
    cost = report.Cost(*parts, report.Spent(0.07, 0.0, 0.0))
    assert cost.cores == pytest.approx(0.06)
