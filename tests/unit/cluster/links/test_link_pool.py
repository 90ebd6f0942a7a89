"""The links of a node to others, as it opens them."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.client.websocket import WebSocket
from relay.cluster.links.handshake import LinkFailed
from relay.cluster.links.link_pool import LinkPool
from relay.hub.cluster_streams import ClusterStreams
from relay.metrics import HopMetrics
from relay.model.cluster import Node
from tests.unit.memory import MemoryRelay

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Newcomers:
    """Nodes that are in the database, and not known yet."""

    rows: dict[str, Node]
    read: list[str] = field(factory=list)

    def find_node(self, _node_id: str) -> Node | None:
        return None

    async def read_node(self, node_id: str) -> Node | None:
        await trio.lowlevel.checkpoint()
        self.read.append(node_id)
        return self.rows.get(node_id)

    def look_soon(self, stream_id: str) -> None:
        raise AssertionError(stream_id)


async def test_a_node_that_came_a_moment_ago_is_looked_for_in_the_database(
    relay: MemoryRelay,
) -> None:
    dialled = []

    async def dial(node: Node) -> WebSocket:
        await trio.lowlevel.checkpoint()
        dialled.append(node.node_id)
        raise LinkFailed("it does not listen yet")

    links = LinkPool("here", relay.hub, ClusterStreams(relay.hub, "here"), HopMetrics(), dial)
    node = Node("new", "there", "192.0.2.1:3100", None, "", "1.0")
    links.nodes = nodes = Newcomers({"new": node})
    await relay.nursery.start(links.run)
    for name in ("new", "gone"):
        links.reach(name)
    await trio.testing.wait_all_tasks_blocked()
    assert dialled == ["new"]
    assert sorted(nodes.read) == ["gone", "new"]
    assert not links.may_reach("gone")
