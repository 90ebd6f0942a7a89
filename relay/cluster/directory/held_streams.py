"""The streams that this node has, and their rows in the tables of the cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import structlog
import trio
from attrs import define, evolve, field

from relay.cluster.directory.shared_tables import SharedStreams
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.hub import Hub
from relay.hub.stream import Stream
from relay.model.cluster import HeldStream, LiveStream

RESTORE_INTERVAL = 20.0
"""Seconds between two looks whether the table has all that this node has; at once where the tables
were emptied."""
WRITE_INTERVAL = 0.05
"""Seconds between two transactions that notify all nodes."""
DIRECTORY_RETRY_INTERVAL = 1.0
"""Seconds between attempts while the database is away."""

log = structlog.get_logger()


@define(eq=False)
class HeldStreams:
    """What this node has, and what the cluster is to know of that."""

    _node_id: str
    _hub: Hub
    _table: SharedStreams
    rows: dict[str, HeldStream] = field(factory=dict)
    """As they were last written."""
    _changed: dict[str, None] = field(factory=dict)
    """Streams whose rows are to be written."""
    _ending: dict[str, trio.Event] = field(factory=dict)
    """Streams whose rows are being removed."""
    _claiming: Counter[str] = field(factory=Counter)
    """Connections that register a stream: meanwhile its row is left to them."""
    _write_wake: Wakeup = field(factory=Wakeup)
    _writing: trio.Lock = field(factory=trio.Lock)
    """Else a row that is removed could be restored at the same time."""
    _written: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    """Those who wait for a change of what this node has."""
    _restored_at: float = -math.inf
    """When all that this node has was last written, by Trio's clock."""

    def hold(self, held: HeldStream) -> None:
        """Note a stream that this node has claimed."""
        stream_id = held.stream.stream_id
        self.rows[stream_id] = held
        if not self.is_claimed(stream_id):
            self.note(stream_id)  # who claimed it has left

    def adopt(self, row: LiveStream) -> bool:
        """Hold a stream by a row of this node, if that is news: it may have come of a claim whose
        answer was lost, or that nobody waited for. Returns whether it is."""
        held = self.rows.get(row.stream_id)
        known = (0, 0) if held is None else (held.stream.term, held.stream.epoch)
        if (row.term, row.epoch) <= known:
            return False
        connection, accepted_at = (0, 0.0) if held is None else (held.connection, held.accepted_at)
        self.hold(HeldStream(row, connection, accepted_at))
        return True

    def note(self, stream_id: str) -> None:
        """Note that a stream of this node is to be written again, or is over."""
        if stream_id in self.rows:
            self._changed[stream_id] = None
            self._write_wake.set()

    async def begin_claim(self, stream_id: str) -> None:
        """Leave the row of a stream alone until `end_claim`; waits while it is being removed."""
        self._claiming[stream_id] += 1
        while (ending := self._ending.get(stream_id)) is not None:
            await ending.wait()

    def end_claim(self, stream_id: str) -> bool:
        """Note that a connection has registered a stream, or has not. Returns whether it was the
        last one that claimed it."""
        self._claiming[stream_id] -= 1
        if self._claiming[stream_id] > 0:
            return False
        del self._claiming[stream_id]
        self.note(stream_id)
        return True

    def is_claimed(self, stream_id: str) -> bool:
        """Whether a connection is registering this stream."""
        return stream_id in self._claiming

    async def wait_until_empty(self) -> None:
        """Wait until this node has no stream any more."""
        while self.rows:
            await self._written.park()

    def note_loss(self) -> None:
        """Note that the rows may be lost: `restore` writes them as soon as it can."""
        self._restored_at = -math.inf

    async def restore(self) -> list[str]:
        """Write the rows that are gone, if that is due; `StoreUnavailable`. Returns the streams
        that another node has."""
        if trio.current_time() - self._restored_at < RESTORE_INTERVAL:
            return []
        async with self._writing:
            now, held = trio.current_time(), list(self.rows.values())
            lost = await self._table.restore(self._node_id, held)
            self._restored_at = now
        return lost

    async def run(self) -> NoReturn:
        """Write what changes, until cancelled."""
        while True:
            await self._write_wake.wait()
            await trio.sleep(WRITE_INTERVAL)
            changed, self._changed = list(self._changed), {}
            try:
                async with self._writing:
                    await self._write(changed)
            except StoreUnavailable:
                self._changed = {**dict.fromkeys(changed), **self._changed}
                self._write_wake.set()
                await trio.sleep(DIRECTORY_RETRY_INTERVAL)
            except StoreRejects:
                log.warning("cluster: streams cannot be written", streams=len(changed))

    async def _write(self, changed: Iterable[str]) -> None:
        rows, ended = self._changes(changed)
        done = trio.Event()
        self._ending.update(dict.fromkeys(ended, done))
        try:
            if rows:
                written = {stream_id: self.rows[stream_id] for stream_id in rows}
                await self._table.update(self._node_id, list(rows.values()))
                for stream_id, held in written.items():
                    if self.rows.get(stream_id) is held:
                        self.rows[stream_id] = evolve(held, stream=rows[stream_id])
            if ended:
                terms = [(stream_id, held.stream.term) for stream_id, held in ended.items()]
                await self._table.end(self._node_id, terms)
                for stream_id, held in ended.items():
                    if self.rows.get(stream_id) is held:
                        del self.rows[stream_id]
        finally:
            for stream_id in ended:
                del self._ending[stream_id]
            done.set()
        self._written.unpark_all()

    def _changes(
        self, changed: Iterable[str]
    ) -> tuple[dict[str, LiveStream], dict[str, HeldStream]]:
        """The rows that are to be written, and those of streams that are over."""
        rows, ended = {}, {}
        for stream_id in changed:
            held, stream = self.rows.get(stream_id), self._hub.find(stream_id)
            if held is None or self.is_claimed(stream_id):
                continue  # `end_claim` notes it again
            elsewhere = stream is not None and stream.live and stream.is_remote
            if elsewhere and stream is not None and stream.term >= held.stream.term:
                del self.rows[stream_id]  # another node has taken it over
            elif stream is None or not stream.live or elsewhere:
                ended[stream_id] = held
            elif (row := _row_of(stream, held)) != held.stream:
                rows[stream_id] = row
        return rows, ended


def _row_of(stream: Stream, held: HeldStream) -> LiveStream:
    return evolve(held.stream, status=stream.status, metadata=stream.metadata)
