"""Links between nodes over loopback and Unix sockets: frames there, messages back."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field, frozen

from relay.client.errors import Closed
from relay.cluster.links.doors import ClusterDoors, listen_for_nodes, listen_here, socket_folder
from relay.cluster.links.handshake import dial_node
from relay.cluster.links.identity import NodeIdentity, make_identity
from relay.model.cluster import Node
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.framing.frame_parser import Message
from relay.transport.stream import FrameStream

FRAMES, SIZE = 1000, 64 * 1024


@define(eq=False)
class Frames:
    """A source of frames."""

    frames: deque[bytes] = field(factory=deque)
    in_line: bool = False

    def take(self) -> bytes | None:
        return self.frames.popleft() if self.frames else None

    def waiting(self) -> bool:
        return bool(self.frames)


@define(eq=False)
class Origin:
    """Sends frames to each node that asks for them, as a hub does to a viewer."""

    written_at_once: int = 0
    asked: list[bytes] = field(factory=list)

    async def serve(self, node: Node, stream: FrameStream) -> None:
        async with trio.open_nursery() as nursery:
            outlet = stream.outlet

            async def on_messages(messages: list[Message]) -> None:
                for message in messages:
                    self.asked.append(message.payload)
                    nursery.start_soon(self._send_frames, stream)

            stream.begin_frames(
                max_message=1024,
                budget=Budget(1 << 20),
                party=node.node_id,
                on_messages=on_messages,
                on_overhead=lambda _count: None,
                on_fault=lambda _ending: stream.abort(),
            )
            outlet.open(lambda: nursery.start_soon(outlet.run))
            await stream.read_frames()
            nursery.cancel_scope.cancel()

    async def _send_frames(self, stream: FrameStream) -> None:
        queued = Frames()
        for number in range(FRAMES):
            frame = wire.frame(wire.BINARY, payload(number))
            if not queued.frames and stream.outlet.write_now(frame):
                self.written_at_once += 1
            else:
                queued.frames.append(frame)
                stream.outlet.line_up(queued)
            if number % 10 == 0:
                await trio.lowlevel.checkpoint()


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


@frozen
class Place:
    origin: Origin
    node: Node
    edge: NodeIdentity


@asynccontextmanager
async def origin_node(way: str, folder: Path | None = None) -> AsyncIterator[Place]:
    """A node that accepts links, and the identity of one that it knows."""
    ours, edge = make_identity("one"), make_identity("one" if way == "unix" else "another")
    edge_node = Node(edge.node_id, edge.machine, None, None, edge.certificate_pem, "1.0")

    async def lookup(node_id: str) -> Node | None:
        await trio.lowlevel.checkpoint()
        return edge_node if node_id == edge.node_id else None

    with socket_folder(folder) as sockets:
        unix, path = listen_here(sockets, ours.node_id)
        tcp = await listen_for_nodes([("127.0.0.1", 0)])
        address = "{}:{}".format(*tcp[0].socket.getsockname())
        node = Node(ours.node_id, ours.machine, address, path, ours.certificate_pem, "1.0")
        doors, origin = ClusterDoors(ours, lookup, tls=way == "tls"), Origin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doors.run, [unix, *tcp], origin.serve)
            yield Place(origin, node, edge)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["unix", "tls", "plain"])
async def test_a_thousand_frames_cross_a_link_in_order_and_whole(way: str) -> None:
    received: list[int] = []

    def on_message(message: memoryview) -> None:
        number = int.from_bytes(message[:4], "big")
        assert message == payload(number)
        received.append(number)

    with trio.fail_after(60):
        async with origin_node(way) as place:
            link = await dial_node(place.node, place.edge, tls=way == "tls")
            assert isinstance(link.stream, trio.SSLStream) == (way == "tls")
            await link.send(b"all frames, please")
            while len(received) < FRAMES:
                await link.read(on_message)
            assert received == list(range(FRAMES))
            assert place.origin.asked == [b"all frames, please"]
            if sys.platform == "linux":  # elsewhere unsent bytes are unknown
                assert place.origin.written_at_once
            await link.aclose()
            assert link.closed
            await link.abort()


@pytest.mark.parametrize("way", ["unix", "tls", "plain"])
async def test_a_node_that_ends_is_noticed_by_the_other(way: str) -> None:
    with trio.fail_after(60):
        async with origin_node(way) as place:
            link = await dial_node(place.node, place.edge, tls=way == "tls")
        with pytest.raises(Closed):
            await link.read(lambda _message: None)
        await link.abort()
