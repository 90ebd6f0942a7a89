"""The tables that the nodes of a cluster share, and their news, in memory.

They decide as `relay.postgres.tables.live_streams` and `nodes` do. Each node has a view of its own,
which can be slow, away, or lose answers to what it has written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeVar

import trio
from attrs import define, evolve, field, frozen

from relay.errors import StoreUnavailable
from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import (
    NODE_TIMEOUT,
    ClaimRequest,
    HeldStream,
    LiveStream,
    Node,
    NodeBeat,
    StreamClaim,
    StreamNews,
)
from relay.postgres.tables.nodes import MAX_BEAT_GAP
from relay.protocol.messages import StreamStatus

T = TypeVar("T")

FIRST_EPOCH = 1_700_000_000_000


@frozen
class LiveRow:
    """A row of the live streams."""

    stream: LiveStream
    connection: int
    accepted_at: float


@define(eq=False)
class MemoryTables:
    """What the database has."""

    owners: dict[str, str] = field(factory=dict)
    rows: dict[str, LiveRow] = field(factory=dict)
    nodes: dict[str, tuple[Node, float]] = field(factory=dict)
    """With the time of their last sign of life."""
    listeners: list[MemoryNewsListener] = field(factory=list)
    on_news: Callable[[MemoryNewsListener, StreamNews], object] = field(
        default=lambda listener, news: listener.put(news)
    )
    """What becomes of news on the way to a listener."""
    claims: int = 0
    _numbers: count[int] = field(factory=lambda: count(FIRST_EPOCH))

    def next_epoch(self) -> int:
        return next(self._numbers)

    def empty(self) -> None:
        """As after a crash of the database: everybody's connection is lost, too."""
        self.rows.clear()
        self.nodes.clear()
        for listener in list(self.listeners):
            listener.lose()

    def tell_streams(self, stream_ids: Iterable[str]) -> None:
        changed = frozenset(stream_ids)
        if changed:
            self._tell(StreamNews(changed))

    def tell_nodes(self) -> None:
        self._tell(StreamNews(nodes=True))

    def _tell(self, news: StreamNews) -> None:
        for listener in self.listeners:
            self.on_news(listener, news)


@define(eq=False)
class MemoryAccess:
    """How one node reaches the tables."""

    tables: MemoryTables
    delay: float = 0.0
    """Seconds before a question is answered."""
    away: bool = False
    loses_answers: bool = False
    """Whether what is asked is done, and the answer lost."""
    questions: int = 0

    async def ask(self, work: Callable[[], T], *, reads: bool = False) -> T:
        self.questions += 1
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        answer = work()
        await trio.sleep(self.delay)
        if self.away or (self.loses_answers and not reads):
            raise StoreUnavailable
        return answer


@define(eq=False)
class MemoryLiveStreams:
    """The `SharedStreams` of one node."""

    access: MemoryAccess

    @property
    def _tables(self) -> MemoryTables:
        return self.access.tables

    async def claim(self, node_id: str, requests: Sequence[ClaimRequest]) -> list[StreamClaim]:
        def claim() -> list[StreamClaim]:
            self._tables.claims += len(requests)
            order = sorted(
                range(len(requests)),
                key=lambda at: (requests[at].stream_id, requests[at].connection),
            )
            answers = {at: self._claim(node_id, requests[at]) for at in order}
            granted = [each.stream_id for each in answers.values() if each.term]
            self._tables.tell_streams(granted)
            return [answers[at] for at in range(len(requests))]

        return await self.access.ask(claim)

    def _claim(self, node_id: str, request: ClaimRequest) -> StreamClaim:
        tables, stream_id = self._tables, request.stream_id
        owner_id = tables.owners.setdefault(stream_id, request.user_id)
        if owner_id != request.user_id:
            return StreamClaim(stream_id, "taken", owner_id)
        row = tables.rows.get(stream_id)
        held = None if row is None or row.stream.owner_id != owner_id else row
        status, before = StreamStatus.ONLINE, None
        if held is None:
            mine = [
                each
                for each in tables.rows.values()
                if each.stream.owner_id == owner_id
                and each.stream.stream_id not in {stream_id, request.replaced}
            ]
            if request.most is not None and len(mine) >= request.most:
                return StreamClaim(stream_id, "too_many", owner_id)
            outcome = "new"
            epoch = term = tables.next_epoch()
        else:
            known = held.stream
            is_here = known.node_id == node_id
            later = held.connection > request.connection
            if later if is_here else held.accepted_at > request.accepted_at:
                return StreamClaim(stream_id, "superseded", owner_id)
            epoch, status = known.epoch, known.status
            outcome = "kept" if is_here else "moved"
            term = known.term if is_here else tables.next_epoch()
            before = None if is_here else known.node_id
        stream = LiveStream(stream_id, owner_id, node_id, term, epoch, status, request.metadata)
        tables.rows[stream_id] = LiveRow(stream, request.connection, request.accepted_at)
        return StreamClaim(stream_id, outcome, owner_id, term, epoch, before)  # type: ignore[arg-type]

    async def renew_epoch(self, stream_id: str, node_id: str, term: int) -> int | None:
        def renew() -> int | None:
            row = self._mine(node_id, stream_id, term)
            if row is None:
                return None
            epoch = self._tables.next_epoch()
            self._put(row, evolve(row.stream, epoch=epoch, status=StreamStatus.ONLINE))
            self._tables.tell_streams([stream_id])
            return epoch

        return await self.access.ask(renew)

    async def update(self, node_id: str, streams: Sequence[LiveStream]) -> None:
        def update() -> None:
            changed = []
            for each in streams:
                row = self._mine(node_id, each.stream_id, each.term)
                if row is None:
                    continue
                new = evolve(row.stream, status=each.status, metadata=each.metadata)
                if new != row.stream:
                    self._put(row, new)
                    changed.append(each.stream_id)
            self._tables.tell_streams(changed)

        await self.access.ask(update)

    async def end(self, node_id: str, ended: Sequence[tuple[str, int]]) -> None:
        def end() -> None:
            mine = [each for each in ended if self._mine(node_id, *each) is not None]
            for stream_id, _ in mine:
                del self._tables.rows[stream_id]
            self._tables.tell_streams(stream_id for stream_id, _ in mine)

        await self.access.ask(end)

    async def find(self, stream_ids: Sequence[str]) -> list[LiveStream]:
        rows = self._tables.rows
        return await self.access.ask(
            lambda: [rows[each].stream for each in stream_ids if each in rows], reads=True
        )

    async def listed(self, visible: VisibleStreams, after: str, limit: int) -> list[LiveStream]:
        def select() -> list[LiveStream]:
            rows = [row.stream for _, row in sorted(self._tables.rows.items())]
            seen = [
                each
                for each in rows
                if each.stream_id > after
                and (visible.everything or visible.covers(each.stream_id, each.owner_id))
            ]
            return seen[:limit]

        return await self.access.ask(select, reads=True)

    async def restore(self, node_id: str, held: Sequence[HeldStream]) -> list[str]:
        def restore() -> list[str]:
            rows, changed, lost = self._tables.rows, [], []
            for each in held:
                stream = evolve(each.stream, node_id=node_id)
                row = rows.get(stream.stream_id)
                if row is None or (row.stream.node_id != node_id and row.stream.term < stream.term):
                    rows[stream.stream_id] = LiveRow(stream, each.connection, each.accepted_at)
                    changed.append(stream.stream_id)
                elif row.stream.node_id != node_id:
                    lost.append(stream.stream_id)
            self._tables.tell_streams(changed)
            return lost

        return await self.access.ask(restore)

    def _mine(self, node_id: str, stream_id: str, term: int) -> LiveRow | None:
        row = self._tables.rows.get(stream_id)
        if row is None or (row.stream.node_id, row.stream.term) != (node_id, term):
            return None
        return row

    def _put(self, row: LiveRow, stream: LiveStream) -> None:
        self._tables.rows[stream.stream_id] = evolve(row, stream=stream)


@define(eq=False)
class MemoryNodes:
    """The `SharedNodes` of one node."""

    access: MemoryAccess
    _seen: dict[str, tuple[float | None, float]] = field(factory=dict)
    """Of the other nodes, their last sign of life, and since when this node knows it."""
    _answered_at: float = 0.0

    async def beat(self, node: Node) -> NodeBeat:
        tables = self.access.tables

        def beat() -> tuple[bool, list[Node]]:
            is_new = node.node_id not in tables.nodes
            has_changed = is_new or tables.nodes[node.node_id][0] != node
            tables.nodes[node.node_id] = (node, trio.current_time())
            if has_changed:
                tables.tell_nodes()
            self._note(node.node_id)
            return is_new, [each for each, _ in tables.nodes.values() if self._lives(each.node_id)]

        is_new, nodes = await self.access.ask(beat)
        return NodeBeat(sorted(nodes, key=lambda each: each.node_id), is_new)

    async def leave(self, node_id: str) -> None:
        await self.access.ask(lambda: self._remove([node_id]))

    async def reap(self) -> list[str]:
        def reap() -> list[str]:
            dead = [each for each in self._seen if not self._lives(each)]
            self._remove(dead)
            for each in dead:
                del self._seen[each]
            return dead

        return await self.access.ask(reap)

    def _note(self, own_id: str) -> None:
        tables, now = self.access.tables, trio.current_time()
        gap = now - self._answered_at > MAX_BEAT_GAP
        self._answered_at = now
        strays = {row.stream.node_id for row in tables.rows.values()} - set(tables.nodes)
        seen: dict[str, float | None] = dict.fromkeys(strays)
        seen |= {node_id: at for node_id, (_, at) in tables.nodes.items()}
        before, self._seen = self._seen, {}
        for node_id, at in seen.items():
            known = before.get(node_id)
            if node_id != own_id:
                is_same = known is not None and known[0] == at and not gap
                self._seen[node_id] = known if is_same and known is not None else (at, now)

    def _lives(self, node_id: str) -> bool:
        known = self._seen.get(node_id)
        return known is None or self._answered_at - known[1] < NODE_TIMEOUT

    def _remove(self, node_ids: Sequence[str]) -> None:
        tables = self.access.tables
        gone = [each for each in node_ids if tables.nodes.pop(each, None) is not None]
        streams = [
            stream_id
            for stream_id, row in tables.rows.items()
            if row.stream.node_id in set(node_ids)
        ]
        for each in streams:
            del tables.rows[each]
        tables.tell_streams(streams)
        if gone:
            tables.tell_nodes()


@define(eq=False)
class MemoryNewsListener:
    """News on their way to one node."""

    node: str
    """Its name."""
    _put: trio.MemorySendChannel[StreamNews | None] = field(init=False)
    _get: trio.MemoryReceiveChannel[StreamNews | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._put, self._get = trio.open_memory_channel(100_000)

    def put(self, news: StreamNews) -> None:
        self._put.send_nowait(news)

    def lose(self) -> None:
        """Lose the connection."""
        self._put.send_nowait(None)

    async def receive(self) -> StreamNews:
        news = await self._get.receive()
        if news is None:
            raise StoreUnavailable
        return news


@define(eq=False)
class MemoryNews:
    """The `News` of one node."""

    access: MemoryAccess
    name: str

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[MemoryNewsListener]:
        await trio.lowlevel.checkpoint()
        if self.access.away:
            raise StoreUnavailable
        listener = MemoryNewsListener(self.name)
        self.access.tables.listeners.append(listener)
        try:
            yield listener
        finally:
            self.access.tables.listeners.remove(listener)
