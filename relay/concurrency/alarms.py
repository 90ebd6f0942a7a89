"""Calls functions at set times, for all connections in one task.

A task that sleeps takes kilobytes; an alarm is an entry in a heap. What an alarm does must neither
wait nor take long: where there is more to do, it starts a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NoReturn, Protocol

import trio
from attrs import define, field

from relay.concurrency.time_slice import TimeSlice

MAX_CANCELLED = 100
"""Cancelled alarms that the heap may hold, and more only while they are less than a half of it."""


class Owner(Protocol):
    """Who set an alarm."""

    def fail(self, problem: Exception) -> object:
        """Log what the alarm raised, and bear it. Must not raise."""


@define(eq=False, repr=False)
class Alarm:
    """A call that is due at a time."""

    ring: Callable[[], object] | None
    owner: Owner | None
    """Both are None once it was called or cancelled: the heap must not keep what it belongs to."""


@define(eq=False, repr=False)
class Alarms:
    """A supervised task that makes each call at its time, by Trio's clock.

    An alarm that raises costs its owner only. When the task is started again, no alarm is lost.
    """

    _heap: list[tuple[float, int, Alarm]] = field(factory=list)
    """Times, numbers for alarms of the same time, and alarms."""
    _numbers: count[int] = field(factory=count)
    _cancelled: int = 0
    """How many of them are cancelled."""
    _next: float = math.inf
    """When the task wakes."""
    _earlier: trio.Event = field(factory=trio.Event)
    """Set when it has to wake earlier."""

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled

    def set(self, when: float, ring: Callable[[], object], owner: Owner) -> Alarm:
        """Have a function called once, at a time or as soon as possible behind it."""
        alarm = Alarm(ring, owner)
        heappush(self._heap, (when, next(self._numbers), alarm))
        if when < self._next:
            self._earlier.set()
        return alarm

    def cancel(self, alarm: Alarm | None) -> None:
        """Call no more, unless that was done."""
        if alarm is None or alarm.ring is None:
            return
        alarm.ring = alarm.owner = None
        self._cancelled += 1
        if self._cancelled > MAX_CANCELLED and 2 * self._cancelled > len(self._heap):
            self._heap = [each for each in self._heap if each[2].ring is not None]
            heapify(self._heap)
            self._cancelled = 0

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Work until cancelled."""
        task_status.started()
        while True:
            time_slice = TimeSlice()
            while self._first_is_due():
                self._call_first()
                await time_slice.pause_if_over()
            self._next = self._heap[0][0] if self._heap else math.inf
            self._earlier = trio.Event()
            with trio.move_on_at(self._next):
                await self._earlier.wait()

    def _first_is_due(self) -> bool:
        """Whether there is an alarm whose time has come, or that was cancelled."""
        if not self._heap:
            return False
        when, _, alarm = self._heap[0]
        return alarm.ring is None or when <= trio.current_time()

    def _call_first(self) -> None:
        _, _, alarm = heappop(self._heap)
        ring, owner = alarm.ring, alarm.owner
        if ring is None or owner is None:
            self._cancelled -= 1
            return
        alarm.ring = alarm.owner = None
        try:
            ring()
        except Exception as problem:  # noqa: BLE001 (a bug must not stop the alarms of others)
            owner.fail(problem)
