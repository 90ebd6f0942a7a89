"""A phone that takes its pictures by plan: as many as wanted, as large as the link carries."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

import pytest
from attrs import define, field, frozen

from relay.client.state.picture_plan import (
    UP_INTERVAL,
    WIDTHS,
    PicturePlanner,
    PictureSize,
    ladder,
)
from relay.client.state.uplink import Uplink
from tests.unit.transport.link_model import LinkModel

MBIT = 125_000
"""Bytes."""
FULL_BYTES = 150_000
"""Of a picture of 1280 pixels of the highest quality."""


@frozen
class Picture:
    step: PictureSize
    taken: float
    arrived: float


@define
class Phone:
    """Plans and sends pictures over a link; the relay says what has come."""

    link: LinkModel
    fps: float = 20
    width: int = 1280
    uplink: Uplink = field(factory=Uplink)
    planner: PicturePlanner = field(factory=PicturePlanner)
    pictures: list[Picture] = field(factory=list)
    _free_at: float = 0.0
    _events: list[tuple[float, int, Callable[[float], None]]] = field(factory=list)
    _number: int = 0

    def run(self, seconds: float) -> list[Picture]:
        self._at(0.0, self._take)
        while self._events[0][0] <= seconds:
            when, _, call = heapq.heappop(self._events)
            call(when)
        return [each for each in self.pictures if each.arrived <= seconds]

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, call))

    def _take(self, now: float) -> None:
        self._at(now + 1 / self.fps, self._take)
        if not self.uplink.has_room(now):
            return
        step = self.planner.plan(self.fps, self.width, self.uplink.bandwidth(now), now)
        size = round(FULL_BYTES * step.cost)
        if self.uplink.wants_question(now):
            number = self.uplink.question_sent(now)
            answered = self._carry(100, now)
            self._at(answered, lambda at: self.uplink.question_answered(number, at))
        self.planner.picture_sent(size)
        self.uplink.frame_sent(size, now)
        answered = self._carry(size, now)
        self.pictures.append(Picture(step, now, answered - self.link.delay))
        self._at(answered, partial(self.uplink.frames_received, len(self.pictures)))

    def _carry(self, size: int, now: float) -> float:
        """When the answer comes to what is sent now."""
        self._free_at = self.link.passes_at(max(self._free_at, now + self.link.delay), size)
        return self._free_at + self.link.delay


def between(pictures: list[Picture], start: float, end: float) -> list[Picture]:
    return [each for each in pictures if start <= each.taken < end]


def age(pictures: list[Picture]) -> float:
    return median(each.arrived - each.taken for each in pictures)


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
    steps = {planner.plan(20, 1280, None, now) for now in range(100)}
    assert steps == {ladder(1280)[len(ladder(1280)) // 2]}


def test_another_width_goes_on_with_pictures_of_about_as_many_bytes() -> None:
    planner = PicturePlanner()
    before = planner.plan(20, 1280, None, 0.0)
    after = planner.plan(20, 640, None, 1.0)
    assert after.width <= 640
    assert after.cost <= before.cost


def test_steps_up_take_time_and_steps_down_do_not() -> None:
    planner = PicturePlanner()
    planner.plan(20, 1280, None, 0.0)
    planner.picture_sent(20_000)
    costs = [planner.plan(20, 1280, 1e9, 0.1 * n).cost for n in range(11)]
    assert costs == sorted(costs)
    assert [costs.count(cost) for cost in sorted(set(costs))] == [2, 2, 2, 2, 3]
    assert all(after <= 1.5 * before for before, after in pairwise(costs))
    assert planner.plan(20, 1280, 1000.0, 1.1) == ladder(1280)[-1]
