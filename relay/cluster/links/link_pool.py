"""The links of this node: those that it opens, one to each origin that it needs, and those that
other nodes have opened.

A link that breaks, or cannot be opened, is tried again as long as somebody wants a stream of that
node.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog
import trio
from attrs import define, field

from relay.client.websocket import WebSocket
from relay.cluster.links.handshake import LinkFailed
from relay.cluster.streams.edge import OriginLink
from relay.cluster.streams.messages import LINK_PROTOCOL_VERSION, Moved
from relay.cluster.streams.origin import EdgeLink
from relay.concurrency.backoff import Backoff
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.hub import Hub
from relay.hub.ledger import Totals
from relay.hub.remote import Epoch
from relay.hub.stream import Stream
from relay.logs.throttle import REPEAT_INTERVAL, ThrottledWarning
from relay.metrics import HopMetrics
from relay.model.cluster import Node
from relay.transport.stream import FrameStream

FIRST_LINK_BACKOFF, MAX_LINK_BACKOFF = 0.2, 2.0
"""Seconds between attempts to open a link: doubled each time."""
MIN_LINK_SECONDS = 1.0
"""A link that held for so long, and breaks, is opened again at once."""
FAILURE_SECONDS = 10.0
"""For which a node counts as unreachable after an attempt; as long as it is needed, there are more
attempts."""

log = structlog.get_logger()


async def no_report(_max_bytes: int) -> bytes:
    """Say nothing."""
    return b""


class Nodes(Protocol):
    """The nodes of the cluster, as they are known here."""

    def find_node(self, node_id: str) -> Node | None:
        """A node that lives; None if there is none with this id."""

    async def read_node(self, node_id: str) -> Node | None:
        """The same of one that may have come a moment ago: asks the database."""

    def look_soon(self, stream_id: str) -> object:
        """Read again where a stream is, and tell the hub."""


@define(eq=False)
class LinkPool:
    """The links to and from other nodes."""

    node_id: str
    _hub: Hub
    _streams: ClusterStreams
    _metrics: HopMetrics
    _dial: Callable[[Node], Awaitable[WebSocket]]
    """Opens a link; raises `LinkFailed`."""
    nodes: Nodes = field(init=False)
    report: Callable[[int], Awaitable[bytes]] = field(init=False, default=no_report)
    """Makes a report of this node for another, as JSON of at most so many bytes."""
    totals: Totals = field(factory=Totals)
    """What became of the frames for other nodes."""
    origins: dict[str, OriginLink] = field(factory=dict)
    """By node, the links over which streams come."""
    edges: dict[str, EdgeLink] = field(factory=dict)
    """By node, the links over which streams go."""
    _nursery: trio.Nursery | None = None
    _failures: dict[str, tuple[str, float]] = field(factory=dict)
    """By node, why the last attempt to open a link failed, and when; the oldest first."""
    _other_versions: dict[str, int] = field(factory=dict)
    """Of the link, by node: those that were logged."""
    _unreachable: ThrottledWarning = field(
        init=False,
        factory=lambda: ThrottledWarning(
            "cluster: a node cannot be reached", min_interval=REPEAT_INTERVAL
        ),
    )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open links, and keep them open, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                for stream in self._hub.streams():
                    if _is_wanted(stream):
                        self.want(stream)
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # while it ends, it takes no task any more
        finally:
            self.origins.clear()

    def unreachable(self) -> dict[str, str]:
        """The nodes to which no link could be opened a moment ago, and why."""
        since = trio.current_time() - FAILURE_SECONDS
        return {
            node_id: why
            for node_id, (why, at) in self._failures.items()
            if at >= since and self.nodes.find_node(node_id) is not None
        }

    def want(self, stream: Stream) -> None:
        """Get the frames of a stream from its origin. Never waits."""
        origin = stream.origin
        if origin is not None and origin != self.node_id:
            link = self._link_to(origin)
            if link is not None:
                link.carry(stream)

    def may_reach(self, node_id: str) -> bool:
        """Whether no attempt to reach a node has failed of late."""
        _, failed_at = self._failures.get(node_id, ("", -math.inf))
        return trio.current_time() - failed_at > FAILURE_SECONDS

    def reach(self, node_id: str) -> None:
        """Try again to open a link to a node, if the last attempt is not too recent. Never
        waits."""
        _, failed_at = self._failures.get(node_id, ("", -math.inf))
        if trio.current_time() - failed_at >= MAX_LINK_BACKOFF:
            self._link_to(node_id)

    async def take(
        self, node_id: str, stream_id: str, term: int, account: FrameAccount
    ) -> Epoch | None:
        """Take a stream over from another node; see `OriginLink.take`."""
        link = self._link_to(node_id)
        return None if link is None else await link.take(stream_id, term, account)

    async def ask(self, node_id: str, max_bytes: int) -> bytes | None:
        """The report of another node; None if there is no answer in time."""
        link = self._link_to(node_id)
        return None if link is None else await link.ask("figures", max_bytes)

    async def serve(self, node: Node, stream: FrameStream) -> None:
        """Give another node the streams that it wants, until its link ends."""
        before = self.edges.get(node.node_id)
        if before is not None:
            before.close()
        link = EdgeLink(
            *(node, self.node_id, stream, self._hub, self._streams),
            *(self._metrics, self.totals, self.report),
            on_other_version=self._note_version,
        )
        self.edges[node.node_id] = link
        try:
            await link.run()
        except Exception:  # a bug ends one link, and not the door
            log.exception("cluster: a link failed", other=node.node_id)
        finally:
            if self.edges.get(node.node_id) is link:
                del self.edges[node.node_id]

    def leave(self) -> None:
        """Tell other nodes that this one is about to end."""
        for edge in self.edges.values():
            edge.leave()

    def _link_to(self, node_id: str) -> OriginLink | None:
        link = self.origins.get(node_id)
        if link is None and self._nursery is not None:
            link = OriginLink(
                *(node_id, self._streams, self._metrics, self.node_id, self._moved),
                on_ready=partial(self._note_success, node_id),
            )
            self.origins[node_id] = link
            self._nursery.start_soon(self._keep_open, node_id, link)
        return link

    async def _keep_open(self, node_id: str, link: OriginLink) -> None:
        backoff = Backoff(FIRST_LINK_BACKOFF, MAX_LINK_BACKOFF)
        try:
            while True:
                seconds = await self._run_once(node_id, link)
                link.fail_requests()
                self._want_again(node_id, link)
                if link.is_idle:
                    break
                if seconds is not None and seconds >= MIN_LINK_SECONDS:
                    backoff.reset()
                else:
                    await trio.sleep(backoff.next())
        finally:
            del self.origins[node_id]

    async def _run_once(self, node_id: str, link: OriginLink) -> float | None:
        """Open the link and use it until it ends; for how many seconds it held, None if it could
        not be opened."""
        node = self.nodes.find_node(node_id) or await self.nodes.read_node(node_id)
        if node is None:
            self._note_failure(node_id, "nobody knows it")
            return None
        try:
            socket = await self._dial(node)
        except LinkFailed as problem:
            self._note_failure(node_id, str(problem))
            self._unreachable.warn(f"{node_id} at {node.address or node.socket}: {problem}")
            return None
        opened_at = trio.current_time()
        try:
            await link.run(socket)
        except Exception:  # a bug ends one link, and not all
            log.exception("cluster: a link failed", other=node_id)
        if link.other_version is not None:
            self._note_version(node_id, link.other_version)
            self._note_failure(node_id, f"it speaks version {link.other_version} of the link")
            return None
        return trio.current_time() - opened_at

    def _note_version(self, node_id: str, version: int) -> None:
        """Say once that a node speaks another version of the link."""
        if self._other_versions.get(node_id) != version:
            known = {each: of for each, of in self._other_versions.items() if self._knows(each)}
            self._other_versions = {**known, node_id: version}
            log.warning(
                "cluster: a node speaks another version of the link: update both",
                other=node_id,
                version=version,
                ours=LINK_PROTOCOL_VERSION,
            )

    def _knows(self, node_id: str) -> bool:
        return self.nodes.find_node(node_id) is not None

    def _note_failure(self, node_id: str, why: str) -> None:
        self._failures.pop(node_id, None)
        self._failures[node_id] = why, trio.current_time()
        while self.may_reach(oldest := next(iter(self._failures))):
            del self._failures[oldest]

    def _note_success(self, node_id: str) -> None:
        """Look for what viewers here wait for, if the node could not be reached before."""
        if self._failures.pop(node_id, None) is not None:
            for stream in self._hub.streams():
                if stream.watchers and not stream.live:
                    self.nodes.look_soon(stream.stream_id)

    def _want_again(self, node_id: str, link: OriginLink) -> None:
        """Want what its viewers still want, and ask the directory where that is now."""
        link.forget_wanted()
        lost, link.lost = link.lost, []
        for stream in lost:
            if stream.origin != node_id and _is_wanted(stream):
                self.want(stream)  # that node only carried it
        for stream in self._hub.streams():
            if stream.origin == node_id and _is_wanted(stream):
                self._streams.await_link(stream)
                link.carry(stream)
                self.nodes.look_soon(stream.stream_id)

    def _moved(self, by: str, moved: Moved) -> None:
        """Look for a stream that is not where it was said to be."""
        stream_id, to = moved.stream_id, moved.node_id
        stream = self._hub.find(stream_id)
        if stream is None or not stream.is_remote:
            return
        if moved.carries and to is not None and to != self.node_id:
            link = self._link_to(to)
            if link is not None and _is_wanted(stream):
                link.carry(stream, was_sent=True)
        elif to is None and by != stream.origin and self._nursery is not None:
            self._nursery.start_soon(self._want_later, stream)
        elif to is not None and to != self.node_id and moved.term > stream.term:
            stream.move_to(to, moved.term)
            if stream.fanout.audience:
                self.want(stream)
        else:
            self.nodes.look_soon(stream_id)

    async def _want_later(self, stream: Stream) -> None:
        """Ask the origin again, when it may have noticed that a node carries a stream no more."""
        await trio.sleep(FIRST_LINK_BACKOFF)
        if _is_wanted(stream):
            self.want(stream)


def _is_wanted(stream: Stream) -> bool:
    return (
        stream.live
        and stream.is_remote
        and stream.producer is None
        and bool(stream.fanout.audience)
    )
