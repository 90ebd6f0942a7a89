"""Does what operators ask of all relays: ends connections.

A supervised task. The database notifies of requests (`auth/session_watch.py` passes them on); where
notifications do not arrive, it looks as often as sessions are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import trio
from attrs import define, field

from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreUnavailable
from relay.model.access.change import EVERYTHING, Change
from relay.model.access.operator import EndRequest

REQUEST_RETRY_INTERVAL = 1.0
"""Seconds between attempts to read while the store is away."""


class RequestTable(Protocol):
    """What operators ask; `StoreUnavailable`."""

    async def latest_id(self) -> int:
        """The greatest id so far; 0 when there is none."""

    async def after(self, request_id: int) -> Sequence[EndRequest]:
        """The requests with a greater id that were made a moment ago, in order."""

    async def done(self, request: EndRequest, ended: int) -> object:
        """Note how many connections this relay has ended."""


@define(eq=False, repr=False)
class OperatorWatch:
    """Reads the requests of operators, each once."""

    _table: RequestTable
    end_user: Callable[[str], int] = field(default=lambda _user_id: 0)
    """Ends the connections of a user; returns how many."""
    end_connection: Callable[[int, str | None], bool] = field(default=lambda _number, _user: False)
    """Ends a connection, if it is of this user; whether there is one."""
    node_id: str | None = None
    """This node, in a cluster."""
    progress: Progress = field(init=False, factory=Progress)
    _position: int | None = None
    """The last request that was read; None before the first look."""
    _wake: Wakeup = field(factory=Wakeup)

    def note(self, change: Change) -> None:
        """Note that there may be requests. Other changes are ignored."""
        if change.kind == "operator" or change == EVERYTHING:
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            try:
                with self.progress:
                    await self._look()
            except StoreUnavailable:
                await trio.sleep(REQUEST_RETRY_INTERVAL)
            else:
                await self._wake.wait()

    async def _look(self) -> None:
        if self._position is None:
            self._position = await self._table.latest_id()
        for request in await self._table.after(self._position):
            self._position = request.request_id
            if request.node not in {None, self.node_id}:
                continue
            await self._table.done(request, self._do(request))

    def _do(self, request: EndRequest) -> int:
        if request.connection is not None:
            return int(self.end_connection(request.connection, request.user_id))
        assert request.user_id is not None
        return self.end_user(request.user_id)
