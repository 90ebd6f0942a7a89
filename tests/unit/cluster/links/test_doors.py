"""The doors: few strangers, for a short time, and not a word to them."""

from __future__ import annotations

import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define, evolve, field

from relay.cluster.links import doors
from relay.cluster.links.doors import (
    MAX_SOCKET_PATH_BYTES,
    MAX_STRANGERS,
    MAX_STRANGERS_PER_ADDRESS,
    PROOF_TIMEOUT,
    ClusterDoors,
    Gate,
    accept_sockets,
    listen_for_nodes,
    listen_here,
    socket_folder,
)
from relay.cluster.links.handshake import dial_node, introduce, read_preface
from relay.cluster.links.identity import NodeIdentity, make_identity
from relay.cluster.links.proof import NONCE_BYTES, Preface
from relay.errors import ConfigError, StoreUnavailable
from relay.model.cluster import Node
from relay.transport.stream import FrameStream
from tests.unit.cluster.links.nodes import Table, identities, node_of


@define(eq=False)
class House:
    """A node with doors, and those who call."""

    nursery: trio.Nursery
    table: Table
    other: NodeIdentity
    """A node that is in the table."""
    doors: ClusterDoors
    stack: ExitStack = field(factory=ExitStack)
    links: list[Node] = field(factory=list)

    async def on_link(self, node: Node, _stream: FrameStream) -> None:
        self.links.append(node)
        await trio.sleep_forever()

    async def call(self, first: bytes = b"") -> trio.SocketStream:
        """Connect, and say something; the caller's end, when the house has looked at it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.stack.enter_context(ours)
        self.stack.enter_context(theirs)
        caller = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.nursery.start_soon(partial(self.doors.receive, ours, on_link=self.on_link))
        await caller.send_all(first)
        await trio.testing.wait_all_tasks_blocked()
        return caller

    async def link(self) -> None:
        """Let the other node open a link."""
        caller = await self.call()
        await introduce(caller, node_of(self.doors.identity), self.other, tls=False)
        await trio.testing.wait_all_tasks_blocked()

    def preface(self, dialler: str = "") -> bytes:
        return Preface(self.doors.identity.node_id, dialler or self.other.node_id).encode()


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    ours, other = identities("one", "one")
    table = Table.of(other)
    async with trio.open_nursery() as nursery:
        house = House(nursery, table, other, ClusterDoors(ours, table.lookup, tls=True))
        with house.stack:
            yield house
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()


async def is_closed(stream: trio.SocketStream) -> bool:
    """Whether the other side has closed, and without a word. Never waits for long."""
    with trio.move_on_after(0.001):
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        return True
    return False


# -- time and room


@pytest.mark.mock_clock
async def test_who_says_nothing_is_closed_in_time() -> None:
    async with open_house() as house:
        caller = await house.call()
        await trio.sleep(PROOF_TIMEOUT - 0.1)
        assert not await is_closed(caller)
        await trio.sleep(0.1)
        assert await is_closed(caller)


@pytest.mark.mock_clock
async def test_who_says_little_at_a_time_has_no_more_time() -> None:
    async with open_house() as house:
        caller, start, line = await house.call(), trio.current_time(), house.preface()
        with suppress(trio.BrokenResourceError):
            for at in range(len(line)):
                await caller.send_all(line[at : at + 1])
                await trio.sleep(0.1)
        assert PROOF_TIMEOUT <= trio.current_time() - start < PROOF_TIMEOUT + 0.2
        assert await is_closed(caller)


@pytest.mark.mock_clock
async def test_who_stops_in_the_middle_of_the_proof_is_closed() -> None:
    async with open_house() as house:
        caller = await house.call(house.preface() + bytes(NONCE_BYTES))
        assert len(await caller.receive_some()) == NONCE_BYTES
        await trio.sleep(PROOF_TIMEOUT - 0.1)
        assert not await is_closed(caller)
        await trio.sleep(0.1)
        assert await is_closed(caller)


@pytest.mark.mock_clock
async def test_there_is_room_for_so_many_strangers() -> None:
    async with open_house() as house:
        callers = [await house.call() for _ in range(MAX_STRANGERS)]
        assert await is_closed(await house.call())
        assert not any([await is_closed(each) for each in callers])
        await callers[0].send_all(b"\n")  # refused at once
        await trio.testing.wait_all_tasks_blocked()
        assert not await is_closed(await house.call())


@pytest.mark.mock_clock
async def test_who_has_proven_to_be_a_node_takes_no_room_of_strangers() -> None:
    async with open_house() as house:
        house.doors.known = house.table.nodes.get
        for _ in range(MAX_STRANGERS + 1):
            await house.link()
        assert len(house.links) == MAX_STRANGERS + 1
        await trio.sleep(PROOF_TIMEOUT + 1)
        assert not await is_closed(await house.call())


async def no_link(_node: Node, _stream: FrameStream) -> None:
    raise AssertionError("nothing was proven")


async def test_an_address_has_room_for_fewer() -> None:
    ours = make_identity("one")
    (listener,) = await listen_for_nodes([("127.0.0.1", 0)])
    place = listener.socket.getsockname()
    gate = ClusterDoors(ours, Table.of().lookup, tls=True)
    with trio.fail_after(10), ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.run, [listener], no_link)
            for _ in range(MAX_STRANGERS_PER_ADDRESS):
                stack.enter_context(socket.create_connection(place))
            await trio.testing.wait_all_tasks_blocked(0.05)
            refused = await trio.open_tcp_stream(*place)
            assert await refused.receive_some() == b""
            if sys.platform == "linux":  # elsewhere loopback is one address
                elsewhere = trio.socket.socket()
                await elsewhere.bind(("127.0.0.2", 0))
                await elsewhere.connect(place)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not await is_closed(trio.SocketStream(elsewhere))
                elsewhere.close()
            await refused.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.mock_clock
async def test_what_is_refused_is_logged_once_a_minute() -> None:
    async with open_house() as house:
        wrong = (b"\n", b"x" * 300, Preface("other", house.other.node_id).encode())
        with structlog.testing.capture_logs() as lines:
            for number in range(600):  # a minute, and a little
                await house.call(wrong[number % 3])
                await trio.sleep(0.101)
    assert len(lines) == 2
    assert {line["log_level"] for line in lines} == {"warning"}
    assert lines[0]["event"] == "cluster: a connection was refused"
    assert lines[0]["why"] == "this machine: it does not begin like a link"


# -- who is known


@pytest.mark.mock_clock
async def test_a_node_that_has_just_joined_is_looked_up() -> None:
    async with open_house() as house:
        assert house.doors.known(house.other.node_id) is None
        await house.link()
        assert house.links == [node_of(house.other)]


@pytest.mark.mock_clock
async def test_strangers_cost_the_database_little_and_known_nodes_nothing() -> None:
    async with open_house() as house:
        house.doors.known = dict(house.table.nodes).get
        for number in range(100):
            await house.call(house.preface(f"stranger-{number}"))
        assert house.table.questions == 20
        await house.link()
        assert house.links == [node_of(house.other)]
        assert house.table.questions == 20
        await trio.sleep(1)
        await house.call(house.preface("stranger-again"))
        assert house.table.questions == 21


@pytest.mark.mock_clock
@pytest.mark.parametrize("problem", [StoreUnavailable("away"), OSError("no files left")])
async def test_what_goes_wrong_with_one_connection_does_not_close_the_doors(
    problem: Exception,
) -> None:
    async def lookup(_node_id: str) -> Node | None:
        await trio.lowlevel.checkpoint()
        raise problem

    async with open_house() as house:
        house.doors.lookup = lookup
        for _ in range(2):
            assert await is_closed(await house.call(house.preface()))


# -- several nodes behind one port


@pytest.mark.parametrize("tls", [False, True])
async def test_a_parent_hands_a_connection_to_the_node_that_is_meant(tls: bool) -> None:
    """It reads the preface alone; the node that gets the socket does the rest."""
    workers, other = identities("one", "one"), make_identity("another")
    (listener,) = await listen_for_nodes([("127.0.0.1", 0)])
    address = "{}:{}".format(*listener.socket.getsockname())
    gate, served = Gate(), []
    by_id = {each.node_id: ClusterDoors(each, Table.of(other).lookup, tls=tls) for each in workers}

    async def hand_over(connection: socket.socket) -> None:
        preface = await gate.admit(connection, read_preface)
        if preface is None:
            return
        line, number = preface.encode(), connection.detach()  # as they go to another process

        async def on_link(node: Node, stream: FrameStream) -> None:
            assert node.node_id == other.node_id
            served.append(preface.target)
            await stream.receive_some()

        await by_id[preface.target].receive(
            socket.socket(fileno=number), Preface.parse(line), on_link=on_link
        )

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_sockets, [listener], hand_over)
            for worker in (*workers, workers[0]):
                node = evolve(node_of(worker), address=address)
                link = await dial_node(node, other, tls=tls)
                await link.aclose()
                await link.abort()
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    assert served == [each.node_id for each in (*workers, workers[0])]


# -- the folder of sockets


def test_the_folder_of_sockets_is_for_this_user_alone_and_goes_at_the_end() -> None:
    with socket_folder(Path("/tmp")) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        listener, path = listen_here(folder, make_identity("one").node_id)
        assert len(path) <= MAX_SOCKET_PATH_BYTES
        with socket.socket(socket.AF_UNIX) as caller, listener.socket:
            caller.connect(path)
    assert not folder.exists()


@pytest.mark.parametrize("unusable", ["long", "missing"])
def test_where_a_folder_is_of_no_use_there_is_another(unusable: str, tmp_path: Path) -> None:
    preferred = tmp_path / ("x" * 100 if unusable == "long" else "missing")
    if unusable == "long":
        preferred.mkdir()
    with socket_folder(preferred) as folder:
        assert not folder.is_relative_to(preferred)
        listener, path = listen_here(folder, "n" * 64)
        listener.socket.close()
        assert len(path) <= MAX_SOCKET_PATH_BYTES


def test_where_there_is_no_folder_at_all_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> str:
        raise PermissionError

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ConfigError, match="no folder for the sockets"), socket_folder():
        pass


async def test_a_port_that_is_taken_is_said_with_its_setting() -> None:
    (listener,) = await listen_for_nodes([("127.0.0.1", 0)])
    port = listener.socket.getsockname()[1]
    with pytest.raises(ConfigError, match=f"^cluster_bind: 127.0.0.1:{port} is in use"):
        await listen_for_nodes([("127.0.0.1", port)])
    await listener.aclose()


def test_sockets_have_short_names() -> None:
    assert len(f"{make_identity('one').node_id}.sock") <= doors.MAX_SOCKET_NAME_BYTES
