"""The tasks of one connection beside its own, most of which are rare."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define


@define(eq=False, repr=False)
class Tasks:
    """Starts tasks in the nursery of a connection, whoever calls: what they log carries its number.

    An idle connection has none of them.
    """

    _nursery: trio.Nursery
    _ended: bool = False

    def start_soon(self, task: Callable[[], Awaitable[object]]) -> None:
        """Start a task that ends with the connection; nothing, once that has begun to end."""
        if not self._ended:
            context = self._nursery.parent_task.context.copy()
            context.run(self._nursery.start_soon, task)

    def end(self) -> None:
        """Start no more: the nursery is about to be left."""
        self._ended = True
