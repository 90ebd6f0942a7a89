"""Nodes of a cluster, and connected sockets for a link between two of them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio
from attrs import define, frozen

from relay.client.websocket import WebSocket
from relay.cluster.links.handshake import LinkFailed, accept_node, introduce
from relay.cluster.links.identity import NodeIdentity, make_identity
from relay.cluster.links.proof import LinkRefused
from relay.model.cluster import Node
from relay.transport.stream import FrameStream


def node_of(identity: NodeIdentity) -> Node:
    """The row of a node."""
    return Node(
        identity.node_id, identity.machine, None, None, identity.certificate_pem, version="1.0"
    )


@define(eq=False)
class Table:
    """The rows of nodes, and how often they were asked for."""

    nodes: dict[str, Node]
    questions: int = 0

    @classmethod
    def of(cls, *nodes: NodeIdentity | Node) -> Table:
        rows = (node_of(each) if isinstance(each, NodeIdentity) else each for each in nodes)
        return cls({each.node_id: each for each in rows})

    async def lookup(self, node_id: str) -> Node | None:
        self.questions += 1
        await trio.lowlevel.checkpoint()
        return self.nodes.get(node_id)


@contextmanager
def connection() -> Iterator[tuple[socket.socket, trio.SocketStream]]:
    """An accepted socket, and the stream of the caller."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    caller = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    with theirs, ours:
        yield ours, caller


@frozen
class Outcome:
    """What became of a handshake on both sides."""

    accepted: tuple[Node, FrameStream] | LinkRefused
    dialled: WebSocket | LinkFailed


@asynccontextmanager
async def meeting(
    dialler: NodeIdentity,
    acceptor: NodeIdentity,
    table: Table,
    *,
    called: Node | None = None,
    tls: bool | tuple[bool, bool] = False,
) -> AsyncIterator[Outcome]:
    """Let one node dial another, which it believes to be `called`; `tls` may differ, that of the
    dialler first."""
    outcomes: dict[str, object] = {}
    by_dialler, by_acceptor = tls if isinstance(tls, tuple) else (tls, tls)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def accept() -> None:
        try:
            outcomes["accepted"] = await accept_node(ours, acceptor, table.lookup, tls=by_acceptor)
        except LinkRefused as refused:
            outcomes["accepted"] = refused

    async def dial() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        try:
            outcomes["dialled"] = await introduce(
                stream, called or node_of(acceptor), dialler, tls=by_dialler
            )
        except LinkFailed as failed:
            outcomes["dialled"] = failed

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            nursery.start_soon(dial)
    outcome = Outcome(**outcomes)  # type: ignore[arg-type] # what was put there
    try:
        yield outcome
    finally:
        if isinstance(outcome.dialled, WebSocket):
            with trio.move_on_after(1, shield=True):
                await outcome.dialled.abort()
        if isinstance(outcome.accepted, tuple):
            outcome.accepted[1].abort()


def identities(*machines: str) -> list[NodeIdentity]:
    return [make_identity(machine) for machine in machines]
