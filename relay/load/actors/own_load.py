"""Measures what the generator itself does: how busy its loop is, and garbage collection."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import trio
from attrs import define, field

from relay.load.measures.generator_usage import GeneratorUsage


@define(eq=False)
class OwnLoad(trio.abc.Instrument):
    """Adds up the time in which this process waits, and finds the longest garbage collection.

    All that is not waiting counts as busy, also when the system lets other processes run.
    """

    _clock: Callable[[], float] = time.perf_counter
    _since: float | None = None
    """When the measurement began; None before."""
    _waiting_since: float | None = None
    _waited: float = 0.0
    _gc_since: float | None = None
    _gc_pause: float = field(default=0.0)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 (Trio passes it)
        self._waiting_since = self._clock()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002
        if self._waiting_since is not None:
            self._waited += self._clock() - self._waiting_since
            self._waiting_since = None

    def on_gc(self, phase: Literal["start", "stop"], _info: object) -> None:
        """Called by Python at the start and the end of each collection."""
        if phase == "start":
            self._gc_since = self._clock()
        elif self._gc_since is not None:
            self._gc_pause = max(self._gc_pause, self._clock() - self._gc_since)
            self._gc_since = None

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self._since = self._clock()
        trio.lowlevel.add_instrument(self)
        gc.callbacks.append(self.on_gc)
        try:
            yield
        finally:
            gc.callbacks.remove(self.on_gc)
            trio.lowlevel.remove_instrument(self)

    def drain(self, dropped: int) -> GeneratorUsage:
        """Return what was measured since the last time, and begin anew."""
        now = self._clock()
        seconds = 0.0 if self._since is None else now - self._since
        drained = GeneratorUsage(
            seconds=seconds,
            busy=max(0.0, seconds - self._waited),
            gc_pause=self._gc_pause,
            dropped=dropped,
        )
        self._since, self._waited, self._gc_pause = now, 0.0, 0.0
        return drained
