"""Finds from what arrived over a link how fast it was, and where it had holes. No I/O.

The link must have been full, or nearly: what arrives is then what it carries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import median

from attrs import define, frozen

from relay.load.scenario.link_trace import LinkStep

HOLE_SECONDS = 0.3
"""Time without an arrival from which on it is a hole, if the link should have been full."""
STEP_SECONDS = 0.5
"""The rate is the mean over so long."""


@frozen
class LinkArrival:
    """Bytes that have arrived."""

    at: float
    size: int


@frozen
class Interval:
    """From one moment to another, in seconds of the measurement."""

    start: float
    end: float

    @property
    def length(self) -> float:
        return self.end - self.start

    def overlap(self, start: float, end: float) -> float:
        return max(0.0, min(self.end, end) - max(self.start, start))


@define(eq=False)
class Direction:
    """What arrived in one direction, in the order of time, and when it was not meant to be full."""

    arrivals: Sequence[LinkArrival]
    pauses: Sequence[Interval] = ()

    def holes(self, length: float) -> list[Interval]:
        """The holes, up to the end of the measurement."""
        moments = [0.0, *(each.at for each in self.arrivals), length]
        gaps = (Interval(start, end) for start, end in pairwise(moments))
        return [gap for gap in gaps if gap.length - self._paused(gap) >= HOLE_SECONDS]

    def _paused(self, gap: Interval) -> float:
        return sum(pause.overlap(gap.start, gap.end) for pause in self.pauses)

    def rates(self, length: float) -> tuple[list[float | None], list[Interval]]:
        """Bits per second in each step, None where it was not full at all; and the holes."""
        holes = self.holes(length)
        number = max(1, round(length / STEP_SECONDS))
        sizes = [0] * number
        for each in self.arrivals:
            sizes[min(number - 1, int(each.at / STEP_SECONDS))] += each.size
        rates: list[float | None] = []
        for step, size in enumerate(sizes):
            start, end = step * STEP_SECONDS, min(length, (step + 1) * STEP_SECONDS)
            lost = sum(hole.overlap(start, end) for hole in holes)
            paused = sum(pause.overlap(start, end) for pause in self.pauses)
            full = end - start - max(lost, paused, lost + paused - (end - start))
            rates.append(size * 8 / full if full > STEP_SECONDS / 5 else (0.0 if lost else None))
        return rates, holes


def idle_parts(pauses: Sequence[Interval], arrivals: Sequence[LinkArrival]) -> list[Interval]:
    """The longest time without an arrival in each pause; both are in the order of time."""
    moments = [each.at for each in arrivals]
    found = []
    for pause in pauses:
        within = moments[bisect_right(moments, pause.start) : bisect_left(moments, pause.end)]
        gaps = pairwise([pause.start, *within, pause.end])
        found.append(max((Interval(*gap) for gap in gaps), key=lambda gap: gap.length))
    return found


@frozen
class RoundTrip:
    at: float
    """When the answer came."""
    seconds: float


def link_steps(
    down: Direction, up: Direction, round_trips: Sequence[RoundTrip], length: float
) -> list[LinkStep]:
    """What a link carried over time; a measurement without any arrival is one hole.

    Where nothing was measured for a step, it is as in the step before. Holes begin and end at their
    own times.
    """
    (down_rates, down_holes), (up_rates, up_holes) = down.rates(length), up.rates(length)
    trips = _round_trips(round_trips, len(down_rates))
    down_rates, up_rates = _filled(down_rates), _filled(up_rates)
    moments = {step * STEP_SECONDS for step in range(len(down_rates))}
    moments |= {moment for hole in (*down_holes, *up_holes) for moment in (hole.start, hole.end)}
    found: list[LinkStep] = []
    for at in sorted(round(moment, 3) for moment in moments if moment < length):
        step = min(len(down_rates) - 1, int(at / STEP_SECONDS))
        made = LinkStep(
            at,
            _rate_at(at, down_rates[step], down_holes),
            _rate_at(at, up_rates[step], up_holes),
            trips[step],
        )
        if not found or _carries(found[-1]) != _carries(made):
            found.append(made)
    return found


def _carries(step: LinkStep) -> tuple[float | None, ...]:
    return step.down, step.up, step.round_trip


def _rate_at(at: float, rate: float | None, holes: Iterable[Interval]) -> float:
    if any(hole.start <= at + 1e-3 < hole.end for hole in holes):
        return 0.0
    return float(round(rate or 0.0, -3))


def _filled(rates: Sequence[float | None]) -> list[float | None]:
    """With the value before in place of each None, or the first one."""
    known: float | None = next((each for each in rates if each is not None), 0.0)
    found: list[float | None] = []
    for each in rates:
        known = known if each is None else each
        found.append(known)
    return found


def _round_trips(trips: Sequence[RoundTrip], steps: int) -> list[float | None]:
    """The least round trip in each step: the others have waited in queues."""
    least: list[float | None] = [None] * steps
    for each in trips:
        step = min(steps - 1, int(each.at / STEP_SECONDS))
        known = least[step]
        least[step] = each.seconds if known is None else min(known, each.seconds)
    if not trips:
        return least
    return [None if each is None else round(each, 4) for each in _calm(_filled(least))]


def _calm(values: Sequence[float | None]) -> Iterator[float | None]:
    """The median with both neighbours: one late answer is no change of the link."""
    for number, each in enumerate(values):
        near = [value for value in values[max(0, number - 1) : number + 2] if value is not None]
        yield median(near) if near else each
