"""A link in virtual time: one narrow place, first in, first out, and a peer that answers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from statistics import median

from attrs import define, field, frozen

from relay.transport.pacing import CALM_PROBE_INTERVAL, Pacer

PING_BYTES = 10

Answers = Callable[[int, int, float, float], Sequence[tuple[int, float]]]
"""What the peer answers, and when: to the nth ping, with this token, sent and arrived then."""


@frozen
class LinkModel:
    """What a link carries, and how long it takes."""

    rates: Sequence[tuple[float, float]]
    """From when on it carries how many bytes a second; 0 in a gap. Begins with the time 0."""
    delay: float = 0.02
    """Seconds each way, without waiting."""
    jitter: float = 0.0
    """Seconds that may come to that, each way."""
    depth: float = 4 << 20
    """Bytes that may wait in front of the narrow place; the rest waits at the sender."""

    def drained_at(self, now: float, free_at: float) -> float:
        """When no more than `depth` is left of what the narrow place is busy with until then."""
        rate = next(rate for start, rate in reversed(self.rates) if start <= now)
        ahead = free_at - now - self.delay
        return now if ahead * rate <= self.depth else now + ahead - self.depth / (rate or 1)

    def passes_at(self, start: float, size: float) -> float:
        """When so many bytes are through the narrow place that reach it at `start`."""
        at = start
        for index, (begins, rate) in enumerate(self.rates):
            ends = self.rates[index + 1][0] if index + 1 < len(self.rates) else math.inf
            if ends <= at:
                continue
            at = max(at, begins)
            if size <= rate * (ends - at):
                return at + (size / rate if rate else 0.0)
            size -= rate * (ends - at)
            at = ends
        raise AssertionError("the last rate carries nothing")


@frozen
class Delivery:
    """A frame that went over the link."""

    size: int
    captured: float
    sent: float
    arrived: float
    waited: float
    """Seconds in front of the narrow place."""
    under_way: int
    """Bytes whose answers could not have come when it was sent, itself included."""


@define
class Sender:
    """Sends the newest frame over a link when its pacer allows it, and answers for the peer."""

    link: LinkModel
    frame_size: int
    fps: float
    pacer: Pacer | None = field(factory=Pacer)
    """None: a frame is sent when there is room in front of the narrow place."""
    answers: Answers = lambda _number, token, _sent, arrived: [(token, arrived)]
    random: Random = field(factory=lambda: Random(1))
    deliveries: list[Delivery] = field(factory=list)
    pings: int = 0
    probes: int = 0
    longest_round_trip: float = 0.0
    _events: list[tuple[float, int, Callable[[float], None]]] = field(factory=list)
    _number: int = 0
    _free_at: float = 0.0
    """When the narrow place is free."""
    _arrived_at: float = 0.0
    _answered_at: float = 0.0
    _waiting: float | None = None
    """When the frame that waits was captured."""
    _unanswered: int = 0
    _look_at: float = -math.inf
    _untold: int = 0
    """Bytes that were sent without telling the pacer, since the link was calm."""
    _told_at: float = -math.inf
    _looked_at: float = -math.inf
    """When it last looked whether an answer is missing."""

    def run(self, seconds: float) -> list[Delivery]:
        """Run up to this time, and return all frames that have arrived."""
        if not self._events:
            self._at(0.0, self._capture)
        while self._events[0][0] <= seconds:
            when, _, call = heapq.heappop(self._events)
            call(when)
        return [each for each in self.deliveries if each.arrived <= seconds]

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, call))

    def _capture(self, now: float) -> None:
        self._waiting = now
        self._at(now + 1 / self.fps, self._capture)
        self._look(now)

    def _look(self, now: float) -> None:
        if self._waiting is None:
            return
        ready = self._ready_at(now)
        if ready <= now:
            self._send(now, self._waiting)
        elif ready != self._look_at:
            self._look_at = ready
            self._at(ready, self._look)

    def _ready_at(self, now: float) -> float:
        """When the waiting frame can be sent, if nothing happens before."""
        room = self.link.drained_at(now, self._free_at)
        pacer = self.pacer
        if room > now or pacer is None or pacer.calm or pacer.may_send(now):
            return room
        return max(pacer.room_at(now), now + 1e-6)

    def _send(self, now: float, captured: float) -> None:
        self._waiting = None
        size, token = self.frame_size, self._probe(now, waited=now > captured)
        self._unanswered += size
        waited = max(0.0, self._free_at - now - self.link.delay)
        arrived = self._carry(size, token, now)
        self.deliveries.append(Delivery(size, captured, now, arrived, waited, self._unanswered))
        self._at(max(self._answered_at, arrived + self.link.delay), self._count_answered)

    def _count_answered(self, now: float) -> None:
        self._unanswered -= self.frame_size

    def _probe(self, now: float, *, waited: bool) -> int | None:
        """Tell the pacer of a frame, as a fan-out does: of few, while the link is calm, but of all
        that had to wait."""
        pacer = self.pacer
        if pacer is None:
            return None
        self._untold += self.frame_size
        if pacer.calm and not waited and now < self._told_at + pacer.probe_interval:
            if now >= self._looked_at + CALM_PROBE_INTERVAL:
                self._looked_at = now
                pacer.notices_delay(now)
            return None
        self._looked_at = now
        self._number += 2
        ping, probe = self._number, self._number + 1
        if pacer.wants_ping(now):
            pacer.ping_sent(ping, now)
            self.pings += 1
            self._carry(PING_BYTES, ping, now)
        told, self._untold, self._told_at = self._untold if pacer.calm else self.frame_size, 0, now
        if not pacer.wants_probe(told, now, waited=waited):
            pacer.frame_sent(None, told, now)
            return None
        pacer.frame_sent(probe, self.frame_size, now)
        self.probes += 1
        return probe

    def _carry(self, size: int, token: int | None, now: float) -> float:
        """Carry bytes there, and answers back."""
        link = self.link
        self._free_at = link.passes_at(max(self._free_at, now + link.delay), size)
        there = self._free_at + self.random.random() * link.jitter
        arrived = self._arrived_at = max(self._arrived_at, there)
        if token is not None:
            self._number += 1
            for answer, when in self.answers(self._number, token, now, arrived):
                back = when + link.delay + self.random.random() * link.jitter
                self._answered_at = max(self._answered_at, back)
                self._at(self._answered_at, partial(self._take_answer, answer))
        return arrived

    def _take_answer(self, token: int, now: float) -> None:
        assert self.pacer is not None
        self.pacer.answer(token, now)
        self.longest_round_trip = max(self.longest_round_trip, self.pacer.round_trip)
        self._look(now)


def median_age(deliveries: Sequence[Delivery], start: float, end: float) -> float:
    """The median age of the frames that arrived in that time."""
    return median(
        each.arrived - each.captured for each in deliveries if start < each.arrived <= end
    )


def throughput(deliveries: Sequence[Delivery], start: float, end: float) -> float:
    """Bytes a second that arrived in that time."""
    return sum(each.size for each in deliveries if start < each.arrived <= end) / (end - start)
