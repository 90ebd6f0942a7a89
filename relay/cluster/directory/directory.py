"""Keeps this node in step with the tables of the cluster.

The tables of PostgreSQL say which nodes live and which node has which stream. This node says that
it lives, hears of changes, and reads what its viewers ask for; `held_streams` writes what it has.
While the database is away all goes on as it is; when it comes back, perhaps empty, this node writes
all that it has once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import NoReturn

import structlog
import trio
from attrs import define, evolve, field

from relay.cluster.directory.held_streams import DIRECTORY_RETRY_INTERVAL, HeldStreams
from relay.cluster.directory.shared_tables import News, SharedNodes, SharedStreams
from relay.cluster.links.link_pool import LinkPool
from relay.concurrency.batcher import Batcher
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.hub import Hub
from relay.hub.peer import HubPeer
from relay.hub.remote import Epoch, RemoteState
from relay.hub.stream import Stream
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import LiveStream, Node, StreamNews

NODE_BEAT_INTERVAL = 2.0
"""Seconds between two signs of life."""
REAP_INTERVAL = 5.0
"""Seconds between two looks for nodes that are dead."""
FIND_TIMEOUT = 0.5
"""Seconds in which a subscriber is told of a stream of another node; later, its status comes by
itself."""
SLOW_SECONDS = 5.0
"""For which nobody waits for the database like that, after somebody has waited in vain."""
LOOK_INTERVAL = 0.05
"""Seconds between two queries that notifications ask for."""
SWEEP_INTERVAL = 1.0
"""Seconds between two looks at what viewers here wait for, in case no notification came."""
MISTRUST_SECONDS = 5.0
"""For which no stream is held to be over because its row is gone: the tables may have been emptied,
and each node writes again what it has, at its next sign of life."""
MAX_SWEPT_STREAMS = 1000
"""Of one look; the next one goes on behind them."""
MAX_UNREAD_STREAMS = 10_000
"""Streams nobody here has heard of yet, whose rows are to be read for those who observe: where
notifications name more, all rows are read."""
MAX_NAMED_NODES = 10
"""Nodes that are gone at once, each with a line of the log; any number may have been made up."""
ALL_VISIBLE = VisibleStreams(True, None, frozenset(), ())  # noqa: FBT003 (as it prints)

log = structlog.get_logger()


@define(eq=False)
class Directory:
    """What this node knows of the cluster."""

    node: Node
    _hub: Hub
    _streams: ClusterStreams
    _links: LinkPool
    _held: HeldStreams
    _table: SharedStreams
    _node_table: SharedNodes
    _news: News
    nodes: dict[str, Node] = field(factory=dict)
    """Those that live, by id."""
    progress: Progress = field(factory=Progress)
    finder: Batcher[str, LiveStream | None] = field(init=False)
    _unsettled: set[str] = field(factory=set)
    """Streams that connections register, whose rows are to be read afterwards."""
    _reconsidered: dict[HubPeer, Identity] = field(factory=dict)
    """Observers who may see more than before, with what they were before."""
    _news_of: dict[str, None] = field(factory=dict)
    """Streams whose rows are to be read, those that wait longest first."""
    _anything_changed: bool = False
    """Whether the rows of all streams of interest are to be read."""
    _reads_all: bool = False
    """Whether all rows are to be read, for those who observe."""
    _reading_behind: str | None = None
    """How far that has come; None while it does not go on."""
    _beat_wake: Wakeup = field(factory=Wakeup)
    _look_wake: Wakeup = field(factory=Wakeup)
    _is_slow_until: float = -math.inf
    """Until when the database counts as slow."""
    _swept: str = ""
    _looks_again: bool = False
    """Whether to read all that is of interest, since the tables may have been emptied."""
    _mistrusts_until: float = -math.inf
    _doubted: set[str] = field(factory=set)
    """Streams whose rows were gone meanwhile."""

    def __attrs_post_init__(self) -> None:
        self.finder = Batcher(self._find)

    # -- what others ask

    def find_node(self, node_id: str) -> Node | None:
        """A node that lives; None if there is none with this id."""
        return self.nodes.get(node_id)

    def is_near(self, node_id: str) -> bool:
        """Whether a connection could go to a node now: to another worker of this machine, or to one
        that came a moment ago and may be that, which the parent knows."""
        node = self.nodes.get(node_id)
        if node is None:
            return node_id != self.node.node_id
        here = self.node
        return node.machine == here.machine and node_id != here.node_id and not node.draining

    async def read_node(self, node_id: str) -> Node | None:
        """A node that may have come a moment ago."""
        with suppress(StoreUnavailable):
            await self._beat()
        return self.nodes.get(node_id)

    async def find(self, stream_id: str) -> None:
        """Let the hub learn where a stream is, in a moment at most; while the database is slow,
        soon."""
        if trio.current_time() < self._is_slow_until:
            self.look_soon(stream_id)
            return
        with (
            trio.move_on_after(FIND_TIMEOUT) as patience,
            suppress(StoreUnavailable, StoreRejects),
        ):
            row = await self.finder.ask(stream_id)
            if row is not None and self._reaches(row.node_id):
                self._streams.open(stream_id, RemoteState.of(row))
        if patience.cancelled_caught:
            self._is_slow_until = trio.current_time() + SLOW_SECONDS

    async def listed(self, identity: Identity, after: str, limit: int) -> list[LiveStream]:
        """The first live streams of all nodes behind an id that somebody may see;
        `StoreUnavailable`."""
        visible = permissions.visible_streams(identity)
        rows = await self._table.listed(visible, after, limit)
        for row in rows:
            self._streams.note_listed(row.stream_id, RemoteState.of(row))
        return rows

    def reconsider(self, peer: HubPeer, before: Identity) -> None:
        """Tell an observer, whose permissions were others before, of what it sees now or no
        more."""
        self._streams.reconsider(peer, before)
        self._reconsidered.setdefault(peer, before)
        self._look_wake.set()

    def look_soon(self, stream_id: str) -> None:
        """Read again where a stream is, and tell the hub."""
        self._news_of[stream_id] = None
        self._look_wake.set()

    def settle(self, stream_id: str) -> None:
        """Note that no connection registers a stream any more."""
        if stream_id in self._unsettled:
            self._unsettled.discard(stream_id)
            self.look_soon(stream_id)

    # -- the end of this node

    async def leave(self) -> None:
        """Remove this node and all that it has; the last thing that it does."""
        self._held.rows.clear()
        with suppress(StoreUnavailable):
            await self._node_table.leave(self.node.node_id)

    async def drain(self) -> None:
        """Let others know that this node takes no new streams, and is about to leave."""
        self.node = evolve(self.node, draining=True)
        self._links.leave()
        with suppress(StoreUnavailable):
            await self._beat()

    # -- the tasks

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep in step until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._beat_forever)
            nursery.start_soon(self._listen_forever)
            nursery.start_soon(self._held.run)
            nursery.start_soon(self._look_forever)
            nursery.start_soon(self._sweep_forever)
            task_status.started()
        raise AssertionError("its tasks do not end")

    async def _beat_forever(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        last_reaped = trio.current_time()
        while True:
            try:
                with self.progress:
                    await self._beat()
                    if trio.current_time() - last_reaped >= REAP_INTERVAL:
                        last_reaped = trio.current_time()
                        self._note_gone(await self._node_table.reap())
            except StoreUnavailable:
                pass
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(LOOK_INTERVAL)
            with trio.move_on_after(NODE_BEAT_INTERVAL - LOOK_INTERVAL):
                await self._beat_wake.wait()

    def _note_gone(self, node_ids: Sequence[str]) -> None:
        for node_id in node_ids[:MAX_NAMED_NODES]:
            log.warning("cluster: a node is gone", other=node_id)
        if len(node_ids) > MAX_NAMED_NODES:
            log.warning("cluster: more nodes are gone", nodes=len(node_ids) - MAX_NAMED_NODES)

    async def _beat(self) -> None:
        try:
            beat = await self._node_table.beat(self.node)
            self.nodes = {each.node_id: each for each in beat.nodes}
            if beat.is_new:
                self._note_loss()
            for lost in await self._held.restore():
                self.look_soon(lost)
        except StoreUnavailable:
            self._note_loss()
            raise
        if self._looks_again:
            self._looks_again = False
            self._look_again()

    def _note_loss(self) -> None:
        """Note that all that is in the tables may be lost."""
        self._held.note_loss()
        self._looks_again = True
        self._mistrust()

    def _mistrust(self) -> None:
        self._mistrusts_until = trio.current_time() + MISTRUST_SECONDS

    async def _listen_forever(self) -> NoReturn:
        while True:
            with suppress(StoreUnavailable):
                async with self._news.listen() as listener:
                    self._look_again()  # what changed meanwhile was not heard of
                    while True:
                        self._take_news(await listener.receive())
            self._mistrust()
            await trio.sleep(DIRECTORY_RETRY_INTERVAL)

    def _take_news(self, news: StreamNews) -> None:
        """Look at what may have changed, before long: anybody may send any number of these."""
        if news.everything:
            self._look_again()
        for stream_id in news.stream_ids:
            has_room = self._hub.is_observed and len(self._news_of) < MAX_UNREAD_STREAMS
            if has_room or self._knows(stream_id):
                self._news_of[stream_id] = None
            elif self._hub.is_observed:
                self._reads_all = True
        if self._has_to_look:
            self._look_wake.set()
        if news.nodes:
            self._beat_wake.set()

    def _knows(self, stream_id: str) -> bool:
        return (
            self._hub.find(stream_id) is not None
            or stream_id in self._streams.announced
            or self._held.is_claimed(stream_id)
        )

    def _look_again(self) -> None:
        """Read all that is of interest here, before long."""
        self._anything_changed = True
        self._look_wake.set()

    @property
    def _has_to_look(self) -> bool:
        return bool(
            self._news_of
            or self._reconsidered
            or self._anything_changed
            or self._reads_all
            or self._reading_behind is not None
        )

    def _note_everything(self) -> None:
        if self._anything_changed:
            self._anything_changed, self._reads_all = False, True
            self._news_of.update((each.stream_id, None) for each in self._hub.streams())
            self._news_of.update(dict.fromkeys(self._streams.announced))

    async def _look_forever(self) -> NoReturn:
        while True:
            await self._look_wake.wait()
            while self._has_to_look:
                self._note_everything()
                asked = list(islice(self._news_of, MAX_SWEPT_STREAMS))
                try:
                    if asked:
                        for each in asked:
                            del self._news_of[each]
                        self._learn(asked, await self._table.find(asked))
                    await self._tell_reconsidered()
                    await self._read_on()
                except StoreUnavailable:
                    self._news_of = {**dict.fromkeys(asked), **self._news_of}
                    await trio.sleep(DIRECTORY_RETRY_INTERVAL)
                except StoreRejects:
                    self._reading_behind = None
                    log.warning("cluster: streams cannot be read", streams=len(asked))
                await trio.sleep(LOOK_INTERVAL)

    async def _read_on(self) -> None:
        """Read the next of all rows, if somebody observes: they have to hear of streams that began
        when nobody here was told which."""
        if not self._hub.is_observed:
            self._reads_all, self._reading_behind = False, None
            return
        if self._reading_behind is None:
            if not self._reads_all:
                return
            self._reads_all, self._reading_behind = False, ""
        rows = await self._table.listed(ALL_VISIBLE, self._reading_behind, MAX_SWEPT_STREAMS)
        self._learn([row.stream_id for row in rows], rows)
        self._reading_behind = rows[-1].stream_id if rows else None

    async def _tell_reconsidered(self) -> None:
        while self._reconsidered:
            peer, before = self._reconsidered.popitem()
            try:
                await self._reveal_to(peer, before)
            except StoreUnavailable:
                self._reconsidered[peer] = before
                raise

    async def _reveal_to(self, peer: HubPeer, before: Identity) -> None:
        visible, after = permissions.visible_streams(peer.identity), ""
        while self._hub.observes(peer):
            rows = await self._table.listed(visible, after, MAX_SWEPT_STREAMS)
            if not rows:
                break
            after = rows[-1].stream_id
            for row in rows:
                if not permissions.may_watch(before, row.stream_id, row.owner_id):
                    self._streams.reveal(peer, row.stream_id, RemoteState.of(row))

    def _learn(self, asked: Iterable[str], rows: Iterable[LiveStream]) -> None:
        found = {row.stream_id: row for row in rows}
        for stream_id in asked:
            row = found.get(stream_id)
            if row is None:
                self._learn_end(stream_id)
            elif row.node_id != self.node.node_id:
                if self._held.is_claimed(stream_id):
                    self._unsettled.add(stream_id)  # it may be registered on the strength of less
                stream = self._hub.find(stream_id)
                if stream is None or stream.live or self._reaches(row.node_id):
                    self._streams.learn(stream_id, RemoteState.of(row))
            elif self._held.is_claimed(stream_id):
                self._unsettled.add(stream_id)
            elif self._held.adopt(row):
                self._begin_again(row)

    def _begin_again(self, row: LiveStream) -> None:
        """Go on with a stream that is produced here as its row says."""
        stream = self._hub.find(row.stream_id)
        if stream is not None and stream.live and not stream.is_remote:
            self._streams.begin_again(stream, Epoch(row.epoch, row.term))

    def _learn_end(self, stream_id: str) -> None:
        if trio.current_time() >= self._mistrusts_until:
            self._streams.learn_end(stream_id)
        else:
            self._doubted.add(stream_id)

    def _reaches(self, node_id: str) -> bool:
        """Whether streams of a node can be had from there, as far as is known. Those of a node that
        cannot be reached are offline here, until it can."""
        if self._links.may_reach(node_id):
            return True
        self._links.reach(node_id)
        return False

    async def _sweep_forever(self) -> NoReturn:
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            self._sweep()

    def _sweep(self) -> None:
        self._streams.forget_left()
        if trio.current_time() >= self._mistrusts_until and self._doubted:
            self._news_of.update(dict.fromkeys(self._doubted))
            self._doubted.clear()
            self._look_wake.set()
        for stream in self._hub.streams():
            if stream.is_remote:
                self._hub.forget_unused(stream)  # who asked for it did not stay
        ids = sorted(self._awaited())
        behind = [each for each in ids if each > self._swept][:MAX_SWEPT_STREAMS]
        self._swept = behind[-1] if len(behind) == MAX_SWEPT_STREAMS else ""
        if behind:
            self._news_of.update(dict.fromkeys(behind))
            self._look_wake.set()

    def _awaited(self) -> Iterator[str]:
        """The streams that somebody here watches, and that do not come."""
        for stream in self._hub.streams():
            if (
                stream.watchers
                and stream.producer is None
                and (not stream.live or stream.is_remote)
            ):
                yield stream.stream_id

    async def _find(self, stream_ids: Sequence[str]) -> list[LiveStream | None]:
        found = {row.stream_id: row for row in await self._table.find(list(set(stream_ids)))}
        return [found.get(each) for each in stream_ids]


@define(eq=False)
class ClusterView:
    """The other nodes, as the hub sees them. A `RemoteStreams`."""

    _links: LinkPool
    _directory: Directory
    _held: HeldStreams
    _streams: ClusterStreams

    def wanted(self, stream: Stream) -> None:
        self._links.want(stream)

    def changed(self, stream: Stream) -> None:
        self._held.note(stream.stream_id)

    def reconsider(self, peer: HubPeer, before: Identity) -> None:
        self._directory.reconsider(peer, before)

    def is_news(self, stream: Stream) -> bool:
        return self._streams.is_news(stream)
