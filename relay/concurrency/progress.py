"""Shows a supervisor that a task has been at one piece of work for too long."""

from __future__ import annotations

import trio
from attrs import define


@define(eq=False, repr=False)
class Progress:
    """One piece of work that has to end, in a `with` block. Waiting for work does not belong in it.

    A task with several children reports the work of one of them.
    """

    began: float | None = None
    """When the work began, by Trio's clock; None while there is none."""

    def __enter__(self) -> None:
        self.began = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self.began = None

    def has_lasted(self, seconds: float) -> bool:
        """Whether the work began at least `seconds` ago and goes on."""
        return self.began is not None and trio.current_time() >= self.began + seconds
