"""A phone that plans its pictures over a link in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

from attrs import define, field, frozen

from relay.client.state.layer_plan import LayerPlanner
from relay.client.state.picture_plan import PictureSize, picture_budget
from relay.client.state.uplink import Uplink
from tests.unit.transport.link_model import LinkModel

MBIT = 125_000
"""Bytes."""
FULL_BYTES = 150_000
"""Of a picture of 1280 pixels of the highest quality."""


@frozen
class Picture:
    """A frame of one layer."""

    layer: str | None
    step: PictureSize
    taken: float
    arrived: float


@define
class Phone:
    """Plans and sends pictures over a link; the relay says what has come."""

    link: LinkModel
    fps: float = 20
    widths: Mapping[str | None, int] = field(factory=lambda: {None: 1280})
    """Of the layers that are needed."""
    uplink: Uplink = field(factory=Uplink)
    planner: LayerPlanner = field(factory=LayerPlanner)
    pictures: list[Picture] = field(factory=list)
    _free_at: float = 0.0
    _events: list[tuple[float, int, Callable[[float], None]]] = field(factory=list)
    _number: int = 0

    def run(self, seconds: float) -> list[Picture]:
        if not self._events:
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
        bandwidth = self.uplink.bandwidth(now)
        budget = None if bandwidth is None else picture_budget(bandwidth, self.fps)
        for layer, step in self.planner.plan(self.widths, budget, now).items():
            self._send(layer, step, now)

    def _send(self, layer: str | None, step: PictureSize, now: float) -> None:
        size = round(FULL_BYTES * step.cost)
        if self.uplink.wants_question(now):
            number = self.uplink.question_sent(now)
            answered = self._carry(100, now)
            self._at(answered, lambda at: self.uplink.question_answered(number, at))
        self.planner.picture_sent(layer, size)
        self.uplink.frame_sent(size, now)
        answered = self._carry(size, now)
        self.pictures.append(Picture(layer, step, now, answered - self.link.delay))
        self._at(answered, partial(self.uplink.frames_received, len(self.pictures)))

    def _carry(self, size: int, now: float) -> float:
        """When the answer comes to what is sent now."""
        self._free_at = self.link.passes_at(max(self._free_at, now + self.link.delay), size)
        return self._free_at + self.link.delay


def between(pictures: list[Picture], start: float, end: float) -> list[Picture]:
    return [each for each in pictures if start <= each.taken < end]


def age(pictures: list[Picture]) -> float:
    return median(each.arrived - each.taken for each in pictures)
