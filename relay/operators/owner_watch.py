"""Keeps live streams in step with their owners, which SQL or another relay can change.

A supervised task. The database notifies of changes (`auth/session_watch.py` passes them on); where
notifications do not arrive, all live streams are looked at as often as all sessions are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, field

from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.hub import Hub
from relay.model.access.change import EVERYTHING, Change

MAX_STREAMS_PER_QUERY = 5000
OWNER_RETRY_INTERVAL = 1.0
"""Seconds between attempts to read while the store is away."""

log = structlog.get_logger()


class StreamOwnerTable(Protocol):
    """The owners of streams; `StoreUnavailable`."""

    async def claim(self, stream_id: str, user_id: str, *, by_session: bool) -> str:
        """The owner of a stream, which becomes this user if it has none."""

    async def owners_of(self, stream_ids: Sequence[str]) -> Mapping[str, str]:
        """The owners of these streams, without those that have none."""


@define(eq=False, repr=False)
class OwnerWatch:
    """Reads the owners of live streams again, and ends the streams that have another one now."""

    _hub: Hub
    _table: StreamOwnerTable
    progress: Progress = field(init=False, factory=Progress)
    _pending: set[str] = field(factory=set)
    """The streams to be read."""
    _wake: Wakeup = field(factory=Wakeup)

    def __attrs_post_init__(self) -> None:
        # It may have got another owner between the claim and the registration.
        self._hub.on_register = self._read_soon

    async def claim(self, stream_id: str, user_id: str, *, by_session: bool) -> str:
        """The owner of a stream, which becomes this user if it has none. It is read again once the
        stream is registered."""
        return await self._table.claim(stream_id, user_id, by_session=by_session)

    def note(self, change: Change) -> None:
        """Note that a stream, or everything, may have changed. Other changes are ignored."""
        if change == EVERYTHING:
            self._read_soon(*self._hub.live_ids())
        elif change.kind == "stream":
            self._read_soon(change.id)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self.note(EVERYTHING)
        task_status.started()
        while True:
            await self._wake.wait()
            while self._pending:
                try:
                    await self._read()
                except StoreUnavailable:
                    await trio.sleep(OWNER_RETRY_INTERVAL)

    async def _read(self) -> None:
        known = {each: owner for each in self._pending if (owner := self._hub.owner_of(each))}
        asked = [*known][:MAX_STREAMS_PER_QUERY]
        self._pending = set([*known][MAX_STREAMS_PER_QUERY:])
        if not asked:
            return
        try:
            with self.progress:
                owners = await self._table.owners_of(asked)
        except StoreRejects:
            log.warning("the owners of streams cannot be read", streams=len(asked))
            return
        except BaseException:
            self._pending.update(asked)
            raise
        for stream_id in asked:
            # A stream that was registered during the query was claimed after it began.
            if self._hub.owner_of(stream_id) == known[stream_id] != owners.get(stream_id):
                self._hub.change_owner(stream_id, owners.get(stream_id))

    def _read_soon(self, *stream_ids: str) -> None:
        if stream_ids:
            self._pending.update(stream_ids)
            self._wake.set()
