"""Makes this process a node: its identity, its doors, its links, and what it tells the tables."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
import trio
from attrs import define, frozen

from relay.cluster.claims import ClusterClaims
from relay.cluster.directory import ClusterView, Directory, News, SharedNodes, SharedStreams
from relay.cluster.doors import ClusterDoors, listen_for_nodes, listen_here, socket_folder
from relay.cluster.identity import NODE_ID_BYTES, make_identity
from relay.cluster.link_pool import LinkPool
from relay.cluster.links import dial_node
from relay.concurrency.supervisor import SupervisedTask
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.hub import Hub
from relay.metrics import HopMetrics, Metrics
from relay.model.cluster import Node
from relay.settings.settings import Settings
from relay.transport.listener import ListeningSocket

ROW_REMOVAL_TIMEOUT = 2.0
"""Seconds for the database to note that this node is gone."""
ANY_HOST = {"0.0.0.0", "::", ""}  # noqa: S104 - none of them can be told to others

log = structlog.get_logger()


@frozen
class ClusterTables:
    """What all nodes share."""

    live_streams: SharedStreams
    nodes: SharedNodes
    news: News


@define(eq=False)
class DoorTask:
    """A supervised task: lets other nodes in."""

    doors: ClusterDoors
    _listeners: Sequence[ListeningSocket]
    _links: LinkPool

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()  # they listen already
        await self.doors.run(self._listeners, self._links.serve)


@frozen
class ClusterParts:
    """This process as a node."""

    directory: Directory
    claims: ClusterClaims
    links: LinkPool
    doors: ClusterDoors
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""

    async def leave(self, grace: float) -> None:
        """Stay until other nodes have taken what this one has, or for `grace` seconds: phones that
        were sent away come back elsewhere."""
        with trio.move_on_after(grace):
            await self.directory.wait_until_empty()
        with trio.move_on_after(ROW_REMOVAL_TIMEOUT):
            await self.directory.leave()


@asynccontextmanager
async def open_cluster(
    settings: Settings,
    tables: ClusterTables,
    hub: Hub,
    metrics: Metrics,
    *,
    machine: str | None = None,
    database_host: str | None = None,
    folder: Path | None = None,
) -> AsyncIterator[ClusterParts]:
    """Be a node, whose tasks the caller supervises.

    `machine` is the id of the machine, where its parent process has chosen one and keeps the door
    for other machines; `folder` is where that keeps the sockets of its workers. `ConfigError`.
    """
    async with AsyncExitStack() as stack:
        sockets = folder or stack.enter_context(socket_folder())
        identity = make_identity(machine or secrets.token_hex(NODE_ID_BYTES))
        here, path = listen_here(sockets, identity.node_id)
        stack.callback(here.socket.close)
        bound = (
            []
            if machine
            else await listen_for_nodes(
                [(each.host, each.port) for each in settings.cluster_addresses]
            )
        )
        for each in bound:
            stack.callback(each.socket.close)
        node = Node(
            node_id=identity.node_id,
            machine=identity.machine,
            address=advertised(settings, bound, database_host),
            socket=path,
            certificate=identity.certificate_pem,
            version=version("relay"),
        )
        metrics.hop = hop = HopMetrics()
        streams = ClusterStreams(hub, identity.node_id)
        tls = settings.cluster_tls == "on"
        links = LinkPool(
            *(identity.node_id, hub, streams, hop),
            partial(dial_node, identity=identity, tls=tls),
        )
        directory = Directory(
            *(node, hub, streams, links, tables.live_streams, tables.nodes, tables.news)
        )
        links.nodes = directory
        hub.remote = ClusterView(links, directory)
        claims = ClusterClaims(*(identity.node_id, hub, tables.live_streams, directory, links, hop))
        doors = ClusterDoors(identity, directory.read_node, tls, known=directory.find_node)
        tasks: dict[str, SupervisedTask] = {
            "cluster": directory,
            "cluster-links": links,
            "cluster-door": DoorTask(doors, [here, *bound], links),
            "cluster-claims": claims.claimer,
            "cluster-finds": directory.finder,
        }
        log.info("cluster: this is a node", node=node.node_id, address=node.address)
        yield ClusterParts(directory, claims, links, doors, tasks)


def advertised(
    settings: Settings, bound: Sequence[ListeningSocket], database_host: str | None
) -> str | None:
    """The address at which other machines reach this one: as set, or the one that faces the
    database, which is on the inner network."""
    if settings.cluster_advertise is not None:
        return settings.cluster_advertise
    if not bound:
        return None
    host, port = bound[0].socket.getsockname()[:2]
    if host in ANY_HOST:
        host = _address_facing(database_host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address_facing(host: str | None) -> str:
    """Our own address on the way to a host; nothing is sent."""
    if host is None or host.startswith("/"):
        return "127.0.0.1"
    try:
        found = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
