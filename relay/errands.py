"""Requests that only the store can answer, while what needs no store goes on. Floor 3.

A database may take seconds to answer, or to be found away. A phone that sends an alert meanwhile
must not stop streaming, nor must a viewer wait whose acknowledgements come behind its alert.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field

MOST = 8
"""Of one connection: the next one holds up what comes behind it."""

Request = TypeVar("Request")


@define(eq=False)
class Errands(Generic[Request]):
    """Those of one connection, done one after the other in their order."""

    _do: Callable[[Request], Awaitable[object]]
    _start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    """Starts a task that ends with the connection."""
    _waiting: list[Request] = field(factory=list)
    """The first is being done."""
    _one_done: trio.Event | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def add(self, request: Request) -> None:
        """See to a request; waits while there are too many."""
        await self.finish(MOST - 1)
        self._waiting.append(request)
        if len(self._waiting) == 1:
            self._start_soon(self._run)

    async def finish(self, but: int = 0) -> None:
        """Wait until all are done but so many."""
        while len(self._waiting) > but:
            if self._one_done is None:
                self._one_done = trio.Event()
            await self._one_done.wait()

    async def _run(self) -> None:
        while self._waiting:
            await self._do(self._waiting[0])
            del self._waiting[0]
            if self._one_done is not None:
                self._one_done.set()
                self._one_done = None
