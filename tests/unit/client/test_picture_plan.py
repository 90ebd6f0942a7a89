"""A phone that takes its pictures by plan: as many as wanted, as large as the link carries."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from relay.client.state.picture_plan import (
    UP_INTERVAL,
    WIDTHS,
    PicturePlanner,
    ladder,
)
from tests.unit.client.phone_model import FULL_BYTES, MBIT, Phone, age, between
from tests.unit.transport.link_model import LinkModel


@pytest.mark.parametrize("width", [320, 640, 1000, 1280, 3840])
def test_each_step_of_the_ladder_takes_fewer_bytes_than_the_last(width: int) -> None:
    steps = ladder(width)
    assert (steps[0].width, steps[0].quality) == (width, 0.8)
    assert steps[-1].width == min(width, WIDTHS[-1])
    for above, below in pairwise(steps):
        assert 0.7 < below.cost / above.cost < 0.96
        assert below.width <= above.width


@pytest.mark.parametrize("delay", [0.01, 0.1])
@pytest.mark.parametrize("rate", [0.5, 1, 3, 10])
def test_pictures_come_at_about_the_wanted_rate_and_are_fresh(rate: float, delay: float) -> None:
    pictures = between(Phone(LinkModel([(0.0, rate * MBIT)], delay)).run(30), 10, 29)
    smallest = FULL_BYTES * ladder(1280)[-1].cost / (rate * MBIT)
    assert len(pictures) >= 0.7 * 20 * 19 / max(1, math.ceil(20 * smallest))
    assert age(pictures) < 0.09 + delay
    carried = sum(FULL_BYTES * each.step.cost for each in pictures) / 19
    assert carried > 0.5 * rate * MBIT  # small pictures are not the way out


def test_on_a_fast_link_pictures_are_as_large_as_wanted() -> None:
    pictures = Phone(LinkModel([(0.0, 100 * MBIT)])).run(10)
    assert len(pictures) >= 0.95 * 200
    assert all(each.step == ladder(1280)[0] for each in between(pictures, 5, 10))


def test_pictures_become_small_at_once_and_large_again_when_the_link_is_back() -> None:
    link = LinkModel([(0.0, 20 * MBIT), (10.0, 0.7 * MBIT), (20.0, 20 * MBIT)])
    pictures = Phone(link).run(30)
    before = between(pictures, 8, 10)[-1].step
    slow = between(pictures, 12, 20)
    assert age(slow) < 0.13
    assert len(slow) >= 0.7 * 8 * 20
    climb = UP_INTERVAL * math.log(1 / ladder(1280)[-1].cost, 1.3) + 1.5
    again = between(pictures, 20 + climb, 30)
    assert all(each.step.cost >= before.cost * 0.88 for each in again)
    assert len(again) >= 0.9 * (10 - climb) * 20


def test_a_gap_does_not_make_pictures_small_for_long() -> None:
    link = LinkModel([(0.0, 10 * MBIT), (10.0, 0.0), (10.3, 10 * MBIT)])
    pictures = Phone(link).run(20)
    before = between(pictures, 8, 10)[-1].step
    assert between(pictures, 10.3 + 3, 20)[0].step.cost >= before.cost * 0.88


def test_while_the_link_is_unknown_pictures_stay_in_the_middle() -> None:
    planner = PicturePlanner()
    steps = {planner.plan(1280, None, now) for now in range(100)}
    assert steps == {ladder(1280)[len(ladder(1280)) // 2]}


def test_another_width_goes_on_with_pictures_of_about_as_many_bytes() -> None:
    planner = PicturePlanner()
    before = planner.plan(1280, None, 0.0)
    after = planner.plan(640, None, 1.0)
    assert after.width <= 640
    assert after.cost <= before.cost


def test_steps_up_take_time_and_steps_down_do_not() -> None:
    planner = PicturePlanner()
    planner.plan(1280, None, 0.0)
    planner.picture_sent(20_000)
    costs = [planner.plan(1280, 1e8, 0.1 * n).cost for n in range(11)]
    assert costs == sorted(costs)
    assert [costs.count(cost) for cost in sorted(set(costs))] == [2, 2, 2, 2, 3]
    assert all(after <= 1.5 * before for before, after in pairwise(costs))
    assert planner.plan(1280, 50.0, 1.1) == ladder(1280)[-1]
