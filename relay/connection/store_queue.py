"""Requests that only the store can answer, while what needs no store goes on.

A database may take seconds to answer, or to be found away. A phone that sends an alert or renews
its session meanwhile must not stop streaming, nor must a viewer wait whose acknowledgements come
behind its alert.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field

MAX_QUEUED_REQUESTS = 8
"""Requests of one connection: the next one holds up what comes behind it, or is refused."""
MAX_STANDSTILL = 1.0
"""Seconds without an answer after which a full queue is full for long."""

Request = TypeVar("Request")
Kind = TypeVar("Kind")


@define(eq=False, repr=False)
class StoreQueue(Generic[Request]):
    """The requests of one connection, answered one after the other, in their order."""

    _answer: Callable[[Request], Awaitable[object]]
    _start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    """Starts a task that ends with the connection."""
    _waiting: list[Request] = field(factory=list)
    """The first is being answered."""
    _one_done: trio.Event | None = None
    _moved_at: float = 0.0
    """When it last went on, by Trio's clock."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def has(self, kinds: tuple[type, ...]) -> bool:
        """Whether a request of one of these kinds is not answered yet."""
        return any(isinstance(each, kinds) for each in self._waiting)

    def waiting(self, kind: type[Kind]) -> list[Kind]:
        """The requests of a kind that are not answered yet."""
        return [each for each in self._waiting if isinstance(each, kind)]

    async def add(self, request: Request) -> None:
        """Queue a request; waits while there are too many."""
        while len(self._waiting) >= MAX_QUEUED_REQUESTS:
            await self.wait_for_answer()
        self._waiting.append(request)
        if len(self._waiting) == 1:
            self._start_soon(self._run)

    async def wait_for_room(self) -> bool:
        """Wait until there is room; False when the queue is full for long."""
        while len(self._waiting) >= MAX_QUEUED_REQUESTS:
            with trio.move_on_at(self._moved_at + MAX_STANDSTILL) as standstill:
                await self.wait_for_answer()
            if standstill.cancelled_caught:
                return False
        return True

    async def wait_for_answer(self) -> None:
        """Wait until the next request is answered."""
        if self._one_done is None:
            self._one_done = trio.Event()
        await self._one_done.wait()

    async def _run(self) -> None:
        while self._waiting:
            self._moved_at = trio.current_time()
            await self._answer(self._waiting[0])
            del self._waiting[0]
            if self._one_done is not None:
                self._one_done.set()
                self._one_done = None
