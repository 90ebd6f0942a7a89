"""Several whole relays that are nodes of one cluster, with tables and links in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field

from relay.client.websocket import WebSocket
from relay.cluster.directory.claims import ClusterClaims
from relay.cluster.directory.directory import ClusterView, Directory
from relay.cluster.directory.held_streams import HeldStreams
from relay.cluster.links.handshake import LINK_STALL_TIMEOUT, LinkFailed
from relay.cluster.links.link_pool import LinkPool
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.stream import Stream
from relay.metrics import HopMetrics
from relay.model.cluster import Node
from relay.transport.stream import FrameStream
from tests.unit.cluster.memory_tables import (
    MemoryAccess,
    MemoryLiveStreams,
    MemoryNews,
    MemoryNodes,
    MemoryTables,
)
from tests.unit.memory import Client, MemoryLink, MemoryRelay, SocketBuffer, open_relay

SETTLE_SECONDS = 0.001
"""In which all comes to rest that does not wait for anything."""
LINK_CAPACITY = 1 << 20
"""Bytes on their way from one node to another."""


@define(eq=False)
class LinkStream(trio.abc.Stream):
    """The dialling end of a link in memory, which may read slowly."""

    link: MemoryLink
    rate: float | None = None
    """Bytes a second that it reads; None: at once."""
    stalled: bool = False
    """Whether it reads nothing until `go_on`."""
    _changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def stall(self) -> None:
        self.stalled = True

    def go_on(self) -> None:
        self.stalled = False
        self._changed.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                await self.link.wait_writable()
                view = view[self.link.send(view) :]
        except OSError:
            raise trio.BrokenResourceError from None

    async def wait_send_all_might_not_block(self) -> None:
        await self.link.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        buffer = bytearray(max_bytes or 65536)
        while True:
            await self.link.wait_readable()
            if self.stalled and not self.link.incoming.ended:
                await self._changed.park()
                continue
            try:
                size = self.link.recv_into(memoryview(buffer)[: 16384 if self.rate else None])
            except BlockingIOError:
                continue
            except OSError:
                raise trio.BrokenResourceError from None
            if self.rate:
                await trio.sleep(size / self.rate)
            return bytes(buffer[:size])

    async def aclose(self) -> None:
        self.link.close()
        self.go_on()
        await trio.lowlevel.checkpoint()


@define(eq=False)
class MemoryNode:
    """One node: a relay, and what makes it a node."""

    name: str
    relay: MemoryRelay
    access: MemoryAccess
    node: Node
    streams: ClusterStreams
    links: LinkPool
    directory: Directory
    held: HeldStreams
    claims: ClusterClaims
    metrics: HopMetrics
    scope: trio.CancelScope
    """Around all of it."""
    alive: bool = True

    def stream(self, stream_id: str = "front-door") -> Stream:
        """A stream that its hub knows."""
        stream = self.relay.hub.find(stream_id)
        assert stream is not None
        return stream

    async def phone(self, stream_id: str = "front-door", **options: Any) -> Client:
        """A client that has registered a stream here."""
        return await self.relay.phone(stream_id, **options)

    async def viewer(self, stream_id: str = "front-door", **options: Any) -> Client:
        """A client that has subscribed to a stream here, which is carried by now if it is
        elsewhere."""
        viewer = await self.relay.viewer(stream_id, **options)
        await trio.sleep(SETTLE_SECONDS)
        return viewer

    async def kill(self) -> None:
        """End it without a word to the tables."""
        self.alive = False
        self.access.away = True
        self.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()


@define(eq=False)
class Call:
    """A link that a node has opened, or is opening, to another."""

    dialler: str
    target: str
    ours: LinkStream
    theirs: MemoryLink

    def cut(self) -> None:
        """Break it, as a network does that knows."""
        self.theirs.reset()
        self.ours.link.reset()
        self.ours.go_on()


@define(eq=False)
class MemoryCluster:
    """The nodes, by their names."""

    nursery: trio.Nursery
    tables: MemoryTables = field(factory=MemoryTables)
    nodes: dict[str, MemoryNode] = field(factory=dict)
    calls: list[Call] = field(factory=list)
    """All that were made, the last one at the end."""
    impostors: dict[str, Callable[[MemoryLink], Awaitable[None]]] = field(factory=dict)
    """What answers at the other end of links, in place of nodes."""
    partitions: set[tuple[str, str]] = field(factory=set)
    """Who cannot call whom."""
    capacity: int = LINK_CAPACITY
    rate: float | None = None
    """That of links that are opened from now on."""

    def __getitem__(self, name: str) -> MemoryNode:
        return self.nodes[name]

    async def start(self, name: str) -> MemoryNode:
        """Start a node."""
        node: MemoryNode = await self.nursery.start(self._run, name)
        self.nodes[name] = node
        return node

    def call(self, dialler: str, target: str) -> Call:
        """The last link from one node to another."""
        return next(
            each
            for each in reversed(self.calls)
            if (each.dialler, each.target) == (dialler, target)
        )

    def cut(self, *names: str) -> None:
        """Cut all links, or those of one node, or those between two."""
        for call in self.calls:
            if set(names) <= {call.dialler, call.target}:
                call.cut()

    def separate(self, one: str, other: str) -> None:
        """Let two nodes reach each other no more."""
        self.partitions |= {(one, other), (other, one)}
        self.cut(one, other)

    def join_as(self, name: str) -> Node:
        """A node that has proved who it is, and of which nothing else is known."""
        node = Node(name, "machine", None, f"/{name}", "certificate", "1")
        self.tables.nodes[name] = (node, trio.current_time())
        return node

    def open_edge(self, stranger: Node, target: str) -> MemoryLink:
        """A link of that node to another, in the hands of a test."""
        up, down = SocketBuffer(LINK_CAPACITY), SocketBuffer(self.capacity)
        node = self.nodes[target]
        stream = FrameStream(MemoryLink(up, down), LINK_STALL_TIMEOUT)
        node.relay.nursery.start_soon(node.links.serve, stranger, stream)
        return MemoryLink(down, up)

    async def _dial(self, dialler: Node, target: Node) -> WebSocket:
        await trio.lowlevel.checkpoint()
        node = self.nodes.get(target.node_id)
        impostor = self.impostors.get(target.node_id)
        if impostor is None and (node is None or not node.alive or node.node != target):
            raise LinkFailed("it is gone")
        if (dialler.node_id, target.node_id) in self.partitions:
            raise LinkFailed("it cannot be reached")
        up, down = SocketBuffer(LINK_CAPACITY), SocketBuffer(self.capacity)
        theirs = MemoryLink(up, down, low_water=256 * 1024)
        call = Call(
            dialler.node_id, target.node_id, LinkStream(MemoryLink(down, up), self.rate), theirs
        )
        self.calls.append(call)
        if impostor is not None:
            self.nursery.start_soon(impostor, theirs)
        elif node is not None:
            stream = FrameStream(theirs, LINK_STALL_TIMEOUT)
            node.relay.nursery.start_soon(node.links.serve, dialler, stream)
        now = trio.current_time()
        return WebSocket(call.ours, heard_at=now, moved_at=now)

    async def _run(self, name: str, *, task_status: trio.TaskStatus[MemoryNode]) -> None:
        with trio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                relay = await stack.enter_async_context(open_relay())
                node = self._make(name, relay, scope)
                async with trio.open_nursery() as nursery:
                    await nursery.start(node.directory.finder.run)
                    await nursery.start(node.claims.claimer.run)
                    await nursery.start(node.links.run)
                    await nursery.start(node.directory.run)
                    task_status.started(node)
                    await trio.sleep_forever()

    def _make(self, name: str, relay: MemoryRelay, scope: trio.CancelScope) -> MemoryNode:
        access = MemoryAccess(self.tables)
        node = Node(name, "machine", None, f"/{name}", "certificate", "1")
        hub, hop = relay.hub, HopMetrics()
        relay.metrics.hop = hop
        relay.owners.owners = self.tables.owners
        streams = ClusterStreams(hub, name)

        async def dial(target: Node) -> WebSocket:
            return await self._dial(node, target)

        links = LinkPool(name, hub, streams, hop, dial)
        table = MemoryLiveStreams(access)
        held = HeldStreams(name, hub, table)
        nodes, news = MemoryNodes(access), MemoryNews(access, name)
        directory = Directory(*(node, hub, streams, links, held, table, nodes, news))
        links.nodes = directory
        hub.remote = ClusterView(links, directory, held, streams)
        claims = ClusterClaims(*(name, hub, table, held, directory, links, hop))
        relay.claims, relay.directory = claims, directory
        return MemoryNode(
            *(name, relay, access, node, streams, links, directory, held, claims, hop, scope)
        )


@asynccontextmanager
async def open_cluster(*names: str, **options: Any) -> AsyncIterator[MemoryCluster]:
    """A cluster of nodes with these names, which ends with the block."""
    async with trio.open_nursery() as nursery:
        cluster = MemoryCluster(nursery, **options)
        for name in names:
            await cluster.start(name)
        for node in cluster.nodes.values():
            await node.directory.read_node(node.name)  # all know all
        yield cluster
        nursery.cancel_scope.cancel()
