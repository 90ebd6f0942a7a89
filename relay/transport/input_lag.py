"""How late a busy event loop reads: who measures a link must not take that for the link's delay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import trio
from attrs import define, field

MIN_SLEEP = 0.001
"""Seconds of a wait for input that nothing interrupted: a shorter one may have found some at once,
and been interrupted by other programs."""


@define(eq=False, repr=False)
class _InputWatch(trio.abc.Instrument):
    """Notes when the event loop looks for input, by the clock that Trio's is made of: it is asked
    at each turn of the loop."""

    read_up_to: float = field(factory=perf_counter)
    """What had arrived by then has been read, or before anybody watched; what is read now came
    later."""
    _looks_at: float = -math.inf
    _looked_at: float = field(factory=perf_counter)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 (the name is Trio's)
        self._looks_at = perf_counter()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        now = perf_counter()
        # A wait ends with the first input; what was there already came behind the look before.
        slept = now - self._looks_at >= MIN_SLEEP
        self.read_up_to, self._looked_at = (now if slept else self._looked_at), now


_watch: trio.lowlevel.RunVar[_InputWatch | None] = trio.lowlevel.RunVar("input watch", None)


@contextmanager
def watch_input() -> Iterator[None]:
    """Watch the event loop meanwhile, for `input_lag`."""
    if _watch.get() is not None:
        yield
        return
    watch = _InputWatch()
    trio.lowlevel.add_instrument(watch)
    _watch.set(watch)
    try:
        yield
    finally:
        _watch.set(None)
        trio.lowlevel.remove_instrument(watch)


def input_lag() -> float:
    """The seconds by which what is read now may have come earlier; 0 if the loop is not watched."""
    watch = _watch.get()
    return 0.0 if watch is None else perf_counter() - watch.read_up_to
