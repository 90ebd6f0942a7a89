"""How much of what it can do the generator did. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from attrs import frozen

MAX_CLOCK_ERROR = 0.005
"""Seconds. With a larger one, ages between two machines are marked as inexact."""
MAX_BUSY = 0.7
"""Part of the time. A generator that is busy for longer may itself be what makes frames old."""


@frozen(kw_only=True)
class GeneratorUsage:
    """What a process of the generator did in some time."""

    seconds: float = 0.0
    busy: float = 0.0
    """Seconds in which it did not wait for the network or a time."""
    gc_pause: float = 0.0
    """The longest pause for Python's garbage collection, in seconds."""
    dropped: int = 0
    """Observations that it could not keep, so that checks may miss something."""

    def plus(self, other: Self) -> GeneratorUsage:
        return GeneratorUsage(
            seconds=self.seconds + other.seconds,
            busy=self.busy + other.busy,
            gc_pause=max(self.gc_pause, other.gc_pause),
            dropped=self.dropped + other.dropped,
        )


@frozen(kw_only=True)
class GeneratorSecond:
    """What the generator did in one second of a run."""

    busy: float = 0.0
    """Part of the time, of the process that was busy for longest."""
    gc_pause: float = 0.0
    dropped: int = 0

    @classmethod
    def of(cls, processes: Iterable[GeneratorUsage]) -> Self:
        known = [each for each in processes if each.seconds > 0]
        return cls(
            busy=max((each.busy / each.seconds for each in known), default=0.0),
            gc_pause=max((each.gc_pause for each in known), default=0.0),
            dropped=sum(each.dropped for each in known),
        )


@frozen(kw_only=True)
class GeneratorResult:
    """What the generator did in a run."""

    busiest: float
    """The largest `busy` of a second."""
    overloaded: int
    """Seconds in which it was busy for more than `MAX_BUSY`."""
    gc_pause: float
    dropped: int
    lateness: float
    """p99, in seconds."""

    @classmethod
    def of(cls, seconds: Iterable[GeneratorSecond], lateness: float) -> Self:
        known = list(seconds)
        return cls(
            busiest=max((each.busy for each in known), default=0.0),
            overloaded=sum(each.busy > MAX_BUSY for each in known),
            gc_pause=max((each.gc_pause for each in known), default=0.0),
            dropped=sum(each.dropped for each in known),
            lateness=lateness,
        )


@frozen(kw_only=True)
class OneGenerator:
    """One of several generators, or an agent."""

    usage: GeneratorResult
    processes: int
    machine: str | None
    """Of an agent, in words; None for a worker of the coordinator's machine."""
    clock_error: float | None
    """By how much its times may be wrong against the coordinator's clock, in seconds; None for a
    worker."""
    sent: int
    """Frames, like the next."""
    received: int
