"""Makes this process a node: its identity, its doors, its links, and what it tells the tables."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import define, frozen

from relay import __version__
from relay.cluster.directory.claims import ClusterClaims
from relay.cluster.directory.directory import ClusterView, Directory
from relay.cluster.directory.held_streams import HeldStreams
from relay.cluster.directory.shared_tables import News, SharedNodes, SharedStreams
from relay.cluster.links.doors import ClusterDoors, listen_for_nodes, listen_here, socket_folder
from relay.cluster.links.handshake import dial_node
from relay.cluster.links.identity import NODE_ID_BYTES, make_identity
from relay.cluster.links.link_pool import LinkPool
from relay.cluster.links.proof import Preface
from relay.cluster.reports import ClusterReports
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
class NodePlace:
    """Where a node is."""

    machine: str
    """The same for all nodes of one parent process."""
    folder: Path
    """Of the Unix sockets of that machine's nodes."""
    address: str | None
    """`HOST:PORT` at which nodes of other machines reach it; None: they cannot."""


@frozen
class ClusterParts:
    """This process as a node."""

    directory: Directory
    held: HeldStreams
    claims: ClusterClaims
    links: LinkPool
    door: ClusterDoors
    reports: ClusterReports
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""

    async def receive(self, accepted: socket.socket, preface: Preface) -> None:
        """Let in another node, whose connection another process has accepted, with this
        preface."""
        await self.door.receive(accepted, preface, on_link=self.links.serve)

    @property
    def node_id(self) -> str:
        """The id of this node."""
        return self.directory.node.node_id

    async def leave(self, grace: float) -> None:
        """Stay until other nodes have taken what this one has, or for `grace` seconds: phones that
        were sent away come back elsewhere."""
        with trio.move_on_after(grace):
            await self.held.wait_until_empty()
        with trio.move_on_after(ROW_REMOVAL_TIMEOUT):
            await self.directory.leave()


@asynccontextmanager
async def open_cluster(
    settings: Settings,
    tables: ClusterTables,
    hub: Hub,
    metrics: Metrics,
    *,
    place: NodePlace,
    doors: Sequence[ListeningSocket] = (),
) -> AsyncIterator[ClusterParts]:
    """Be a node at this place, whose tasks the caller supervises.

    `doors` are those for other machines, unless a parent process keeps them.
    """
    with ExitStack() as stack:
        identity = make_identity(place.machine)
        here, path = listen_here(place.folder, identity.node_id)
        stack.callback(here.close)
        node = Node(
            node_id=identity.node_id,
            machine=identity.machine,
            address=place.address,
            socket=path,
            certificate=identity.certificate_pem,
            version=__version__,
        )
        metrics.hop = hop = HopMetrics()
        streams = ClusterStreams(hub, identity.node_id)
        tls = settings.cluster_tls == "on"
        links = LinkPool(
            *(identity.node_id, hub, streams, hop),
            partial(dial_node, identity=identity, tls=tls, folder=place.folder),
        )
        held = HeldStreams(identity.node_id, hub, tables.live_streams)
        directory = Directory(
            *(node, hub, streams, links, held, tables.live_streams, tables.nodes, tables.news)
        )
        links.nodes = directory
        reports = ClusterReports(identity.node_id, hub, links, directory)
        links.report = reports.answer
        hub.remote = ClusterView(links, directory, held, streams)
        claims = ClusterClaims(
            *(identity.node_id, hub, tables.live_streams, held, directory, links, hop)
        )
        door = ClusterDoors(identity, directory.read_node, tls, known=directory.find_node)
        tasks: dict[str, SupervisedTask] = {
            "cluster": directory,
            "cluster-links": links,
            "cluster-door": DoorTask(door, [here, *doors], links),
            "cluster-claims": claims.claimer,
            "cluster-finds": directory.finder,
        }
        with structlog.contextvars.bound_contextvars(node=node.node_id):  # in lines of all tasks
            log.info("cluster: this is a node", address=node.address)
            yield ClusterParts(directory, held, claims, links, door, reports, tasks)


@asynccontextmanager
async def open_place(
    settings: Settings, database_host: str | None
) -> AsyncIterator[tuple[NodePlace, Sequence[ListeningSocket]]]:
    """Open a folder for the sockets of this machine's nodes, and listen for other machines where
    the settings say; `ConfigError`. The host of the database tells which of our addresses is on the
    inner network."""
    addresses = [(each.host, each.port) for each in settings.cluster_addresses]
    doors = await listen_for_nodes(addresses) if addresses else []
    try:
        with socket_folder() as folder:
            bound = doors[0].socket.getsockname()[:2] if doors else None
            address = advertised(settings, bound, database_host)
            yield NodePlace(secrets.token_hex(NODE_ID_BYTES), folder, address), doors
    finally:
        for door in doors:
            door.close()


def advertised(
    settings: Settings, bound: tuple[str, int] | None, database_host: str | None
) -> str | None:
    """What other machines are told to connect to, by an address at which this one listens; None:
    they cannot. May ask for the address of the database's host."""
    if settings.cluster_advertise is not None:
        return settings.cluster_advertise
    if bound is None:
        return None
    host, port = bound
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
