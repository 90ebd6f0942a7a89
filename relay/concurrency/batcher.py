"""Joins requests to the store that wait at the same time.

All that wait when the store is free go into one call: a thousand phones that reconnect at once are
a few queries, and alerts that arrive together share a commit.

What one of them asks must not fail the others: a batch that the store rejects is served in halves,
until the request that it rejects stands alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NoReturn, TypeVar

import trio
from attrs import define, field

from relay.concurrency.progress import Progress
from relay.errors import StoreRejects, StoreUnavailable

Request = TypeVar("Request")
Result = TypeVar("Result")

MAX_WAITING = 1024
"""Requests that may wait; those that come later wait to be let in."""


@define(eq=False, repr=False)
class _Pending(Generic[Request, Result]):
    request: Request = field(repr=False)
    done: trio.Event = field(factory=trio.Event, repr=False)
    result: list[Result] = field(factory=list, repr=False)
    """Empty when there is none."""
    rejection: StoreRejects | None = None
    """Why the store does not take this request."""
    abandoned: bool = False
    """Whether its task waits no more."""


@define(eq=False, repr=False)
class Batcher(Generic[Request, Result]):
    """A supervised task that serves requests in batches, one batch at a time."""

    serve: Callable[[Sequence[Request]], Awaitable[Sequence[Result]]]
    """Returns the results in the order of the requests; raises `StoreUnavailable`, or
    `StoreRejects` for one of them, without an effect."""
    max_batch: int = 500
    """Requests in one batch."""
    progress: Progress = field(init=False, factory=Progress)
    _put: trio.MemorySendChannel[_Pending[Request, Result]] = field(init=False)
    _get: trio.MemoryReceiveChannel[_Pending[Request, Result]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(MAX_WAITING)

    async def ask(self, request: Request) -> Result:
        """Wait for the result; raises `StoreUnavailable` when there is none to be had now, and
        `StoreRejects` when there is none to this request."""
        pending: _Pending[Request, Result] = _Pending(request)
        try:
            try:
                self._put.send_nowait(pending)
            except trio.WouldBlock:
                await self._put.send(pending)
            await pending.done.wait()
        finally:
            pending.abandoned = True
        if pending.rejection is not None:
            raise pending.rejection
        if not pending.result:
            raise StoreUnavailable
        return pending.result[0]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Serve until cancelled. A failure of any kind reaches all that wait."""
        task_status.started()
        while True:
            batch = [await self._get.receive()]
            try:
                batch += self._take_waiting(self.max_batch - 1)
                batch = [pending for pending in batch if not pending.abandoned]
                if batch:
                    await self._serve_batch(batch)
            except StoreUnavailable:
                batch += self._take_waiting(MAX_WAITING)
            except BaseException:
                batch += self._take_waiting(MAX_WAITING)
                raise
            finally:
                for pending in batch:
                    pending.done.set()

    async def _serve_batch(self, batch: Sequence[_Pending[Request, Result]]) -> None:
        try:
            with self.progress:
                results = await self.serve([pending.request for pending in batch])
        except StoreRejects as rejection:
            if len(batch) == 1:
                batch[0].rejection = rejection
                batch[0].done.set()
                return
            middle = len(batch) // 2
            await self._serve_batch(batch[:middle])
            await self._serve_batch(batch[middle:])
            return
        # All or none: if one is missing, it is unknown to whom the others belong.
        for pending, result in list(zip(batch, results, strict=True)):
            pending.result.append(result)
            pending.done.set()

    def _take_waiting(self, limit: int) -> list[_Pending[Request, Result]]:
        taken: list[_Pending[Request, Result]] = []
        while len(taken) < limit:
            try:
                taken.append(self._get.receive_nowait())
            except trio.WouldBlock:
                break
        return taken
