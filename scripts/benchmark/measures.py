"""What is shown of each workload. The first of its measures is the one that servers differ by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from attrs import frozen
from workloads import Base, FanOut, Idle, Joining, Result, Slow, Start, Storm, Workload

BUSY = 0.95
"""Of a core: a generator above that may have been the bottleneck."""


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


@frozen
class Measure:
    """The median of all rounds."""

    heading: str
    of: Callable[[Result], float]
    """Of one round."""
    digits: int = 1
    percent: bool = False

    def show(self, rounds: Sequence[Result]) -> str:
        middle = median(map(self.of, rounds))
        return f"{middle:.0%}" if self.percent else f"{middle:,.{self.digits}f}"


@frozen
class AllAges:
    """A quantile of the ages of all rounds, in ms."""

    heading: str
    part: float

    def show(self, rounds: Sequence[Result]) -> str:
        ages = [age for result in rounds for age in result.ages]
        return f"{quantile(ages, self.part) * 1000:.1f}"


@frozen
class ClientsBusy:
    """The share of a core that the clients used, with a mark where it may have been too much."""

    heading: str = "clients busy"

    def show(self, rounds: Sequence[Result]) -> str:
        most = max(result.generator / result.seconds for result in rounds)
        return f"{most:.0%}" + ("!" if most > BUSY else "")


Column = Measure | AllAges | ClientsBusy

ANSWERS = (
    Measure("answers", lambda result: result.answers / (result.frames or 1), digits=2),
    Measure("answering", lambda result: result.answering / result.seconds, percent=True),
)
"""Pongs and acknowledgements for each frame, and the share of a core that they took the clients."""


def _each(total: float, result: Result) -> float:
    """µs a frame, or a connection, of so many seconds in all."""
    return total / (result.frames or 1) * 1e6


MAIN_THREAD = Measure("main thread", lambda result: _each(result.main_thread, result))
RESIDENT = Measure("MiB", lambda result: result.resident / 2**20)
RATE = Measure("frames/s", lambda result: result.frames / result.seconds, digits=0)
SERVER_BUSY = Measure(
    "server busy", lambda result: (result.user + result.system) / result.seconds, percent=True
)
ENDS = (
    Measure("its end", lambda result: _each(result.end, result)),
    Measure("main thread", lambda result: _each(result.end_main_thread, result)),
)
AGES = (AllAges("p50 ms", 0.5), AllAges("p99", 0.99))


def _cpu(unit: str) -> Measure:
    return Measure(f"CPU µs a {unit}", lambda result: result.cost * 1e6)


def measures_of(workload: Workload) -> tuple[Measure, *tuple[Column, ...]]:
    parts = (
        Measure("user", lambda result: _each(result.user, result)),
        Measure("system", lambda result: _each(result.system, result)),
    )
    match workload:
        case FanOut():
            busy = RESIDENT, SERVER_BUSY, ClientsBusy(), *ANSWERS
            return _cpu("frame"), *parts, RATE, *AGES, *busy
        case Joining():
            return _cpu("connection"), *parts, MAIN_THREAD, *AGES, RESIDENT, ClientsBusy()
        case Storm():
            cpu = _cpu("connection"), *parts, MAIN_THREAD
            return *cpu, *ENDS, *AGES, RESIDENT, ClientsBusy()
        case Idle():
            return (
                Measure("KiB a connection", lambda result: result.grown / result.frames / 2**10),
                RESIDENT,
            )
        case Base():
            return (RESIDENT,)
        case Start():
            cost = Measure("CPU ms", lambda result: result.cost * 1e3, digits=0)
            return cost, AllAges("ms to listening, p50", 0.5), RESIDENT
        case Slow():
            raise TypeError("slow viewers have a table of their own")
