"""What the nodes of a cluster report to each other, and to operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import trio
from attrs import define, field, frozen

from relay.cluster.links.link_pool import LinkPool
from relay.hub.figures import encode_figures
from relay.hub.hub import Hub
from relay.hub.ledger import Ledger
from relay.model.cluster import Node
from relay.protocol.reports import NodeReport, UnreachableReport

MAX_NODE_FIGURES_BYTES, MAX_CLUSTER_FIGURES_BYTES = 1 << 20, 24 << 20
"""Of the figures of one node, which go ahead of frames on a link, and of all nodes together."""
MAX_ANSWERS_AT_ONCE = 2
"""Reports for other nodes that are made at the same time."""


class KnownNodes(Protocol):
    """The nodes of the cluster, as they are known here."""

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Those that live, this one among them, by id."""


class _NodeFigures(msgspec.Struct):
    """The figures of one node, whose streams go on as they are."""

    streams: list[msgspec.Raw]
    nodes: list[NodeReport]
    omitted: int = 0


@frozen
class ClusterCounts:
    """The links of this node, and what it knows of others."""

    links_in: int
    """Links over which frames come."""
    links_out: int
    """Links over which frames go to other nodes."""
    carried: int
    """Streams of other nodes that are watched here."""
    frames: Ledger
    """What became of frames for other nodes."""
    waiting: int
    """Frames for other nodes that wait."""
    live: int
    """Nodes, this one among them, without those that drain."""
    draining: int
    unreachable: int


@define(eq=False)
class ClusterReports:
    """Reports of this node and, over links, of all others."""

    node_id: str
    _hub: Hub
    _links: LinkPool
    _known: KnownNodes
    _answering: trio.CapacityLimiter = field(
        factory=lambda: trio.CapacityLimiter(MAX_ANSWERS_AT_ONCE)
    )

    async def answer(self, max_bytes: int) -> bytes:
        """The figures of this node for another one, as JSON of about so many bytes at most."""
        async with self._answering:
            figures = await self._own(min(max_bytes, MAX_NODE_FIGURES_BYTES))
        return _encode([figures])

    async def figures(self) -> bytes:
        """The figures of this node, as JSON."""
        return _encode([await self._own(None)])

    async def figures_of_all(self) -> bytes:
        """The figures of all nodes, as JSON, with the names of those that did not answer within a
        second."""
        others = [each for each in self._known.nodes if each != self.node_id]
        max_bytes = min(MAX_NODE_FIGURES_BYTES, MAX_CLUSTER_FIGURES_BYTES // (len(others) + 1))
        answers: dict[str, _NodeFigures] = {}

        async def ask(node_id: str) -> None:
            found = await self._ask(node_id, max_bytes)
            if found is not None:
                answers[node_id] = found

        async with trio.open_nursery() as nursery:
            for each in others:
                nursery.start_soon(ask, each)
        own = await self._own(max_bytes)  # last, so that it knows which nodes it cannot reach
        silent = [each for each in others if each not in answers]
        return _encode([own, *(answers[each] for each in others if each in answers)], silent)

    def count(self) -> ClusterCounts:
        """What there is now."""
        nodes = self._known.nodes.values()
        draining = sum(each.draining for each in nodes)
        origins = self._links.origins.values()
        return ClusterCounts(
            links_in=sum(each.ready for each in origins),
            links_out=len(self._links.edges),
            carried=sum(len(each.carried) for each in origins),
            frames=self._links.totals.frames,
            waiting=self._links.totals.waiting,
            live=len(nodes) - draining,
            draining=draining,
            unreachable=len(self._links.unreachable()),
        )

    async def _ask(self, node_id: str, max_bytes: int) -> _NodeFigures | None:
        body = await self._links.ask(node_id, max_bytes)
        if body is None:
            return None
        try:
            return msgspec.json.decode(body, type=_NodeFigures)
        except msgspec.DecodeError:  # of a node that has no such report
            return None

    async def _own(self, max_bytes: int | None) -> _NodeFigures:
        figures = await encode_figures(self._hub, self.node_id, max_bytes)
        streams = [msgspec.Raw(each) for each in figures.streams]
        return _NodeFigures(streams, [self._describe()], figures.omitted)

    def _describe(self) -> NodeReport:
        unreachable = self._links.unreachable()
        return NodeReport(
            node=self.node_id,
            reaches=sorted(each.node_id for each in self._links.origins.values() if each.ready),
            cannot_reach=[UnreachableReport(*each) for each in unreachable.items()],
        )


def _encode(parts: Sequence[_NodeFigures], silent: Iterable[str] | None = None) -> bytes:
    report: dict[str, object] = {
        "streams": [stream for part in parts for stream in part.streams],
        "nodes": [node for part in parts for node in part.nodes],
    }
    if silent is not None:
        report["silent"] = list(silent)
    omitted = sum(part.omitted for part in parts)
    if omitted:
        report["omitted"] = omitted
    return msgspec.json.encode(report)
