"""The parent decides which worker serves a viewer, whatever becomes of the workers meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define, field

from relay.guard.client_address import ClientAddress
from relay.workers.child import ChildWorker, GivenConnection, WorkerState
from relay.workers.control import ControlChannel
from relay.workers.messages import (
    ControlReader,
    EndConnection,
    EndElsewhere,
    Receive,
    Received,
    Relocate,
    Settled,
    pack,
)
from relay.workers.placement import LOAD_SLACK, Placement
from relay.workers.relocations import RELOCATION_TIMEOUT, OfferedViewers

pytestmark = pytest.mark.mock_clock
NUMBER = 7


@define(eq=False)
class Worker:
    """A worker process, as far as its parent knows it."""

    name: str
    pid: int
    theirs: socket.socket = field(init=False)
    channel: ControlChannel = field(init=False)
    child: ChildWorker = field(init=False)
    sockets: list[int] = field(factory=list)
    """Descriptors that came with what the parent has said."""

    def __attrs_post_init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.channel = ControlChannel(ours, ControlReader.of_news())
        process: Any = SimpleNamespace(pid=self.pid)
        self.child = ChildWorker(self.pid, process, self.channel, WorkerState.READY)
        self.child.node_id = self.name

    def orders(self) -> list[Any]:
        """What the parent has said since the last time."""
        reader = ControlReader.of_orders()
        found: list[Any] = []
        with suppress(BlockingIOError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.theirs, 1 << 20, 8)
                found += reader.feed(data)
                self.sockets += descriptors
        return found

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()
        for each in self.sockets:
            os.close(each)


@define(eq=False)
class Parent:
    """The part of a parent that moves viewers: one is at `here`, and its stream is at `there`."""

    here: Worker = field(factory=lambda: Worker("here", 1))
    there: Worker = field(factory=lambda: Worker("there", 2))
    placement: Placement = field(factory=Placement)
    lost: list[GivenConnection] = field(factory=list)
    client: socket.socket = field(init=False)
    viewer: socket.socket = field(init=False)
    given: GivenConnection = field(init=False)
    children: list[ChildWorker] = field(init=False)
    offered: OfferedViewers = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client, self.viewer = socket.socketpair()
        self.client.setblocking(False)
        self.children = [self.here.child, self.there.child]
        self.offered = OfferedViewers(self.children, self.placement, self.lost.append)
        address = ClientAddress.parse("192.0.2.1")
        self.given = GivenConnection(NUMBER, self.viewer, "peer", 0.0, address)
        self.given.child = self.here.child
        self.here.child.connections[NUMBER] = self.given
        self.placement.add(None, self.here.child.key)

    async def relocate(self, to: str = "there", number: int = NUMBER) -> None:
        """Have the first worker offer its viewer."""
        relocate = Relocate(number, to, "front-door", b"all of it")
        socket.send_fds(self.here.theirs, [pack(relocate)], [self.viewer.fileno()])
        news = await self.here.child.receive()
        assert news == relocate
        self.offered.note(self.here.child, relocate)

    def answer(self, *, is_ready: bool) -> None:
        self.offered.note(self.there.child, Received(NUMBER, is_ready))

    def end(self, worker: Worker) -> None:
        """What the parent does when a worker has ended."""
        self.children.remove(worker.child)
        for number in list(worker.child.connections):
            given = worker.child.connections.pop(number)
            self.placement.remove(given.hint, worker.child.key)
            if not self.offered.keeps(worker.child, number):
                self.lost.append(given)
        self.offered.note_ended(worker.child)

    @property
    def loads(self) -> dict[str, int]:
        """Connections by worker."""
        loads = self.placement.loads
        return {each.name: loads[each.pid] for each in (self.here, self.there)}

    def is_served_by(self, worker: Worker) -> bool:
        return self.given.child is worker.child and NUMBER in worker.child.connections

    @property
    def has_no_copy(self) -> bool:
        """Whether the parent has closed its copies: then those of the test are the last."""
        self.viewer.close()
        for each in (self.here, self.there):
            while each.sockets:
                os.close(each.sockets.pop())
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
async def parent() -> AsyncIterator[Parent]:
    parent = Parent()
    yield parent
    for each in (parent.here, parent.there):
        each.close()
    parent.client.close()
    parent.viewer.close()


STAYS, MOVED = [Settled(NUMBER, yours=True)], [Settled(NUMBER, yours=False)]
OFFER = Receive(NUMBER, "front-door", b"all of it")


async def test_a_viewer_moves_once_the_other_worker_is_ready(parent: Parent) -> None:
    await parent.relocate()
    assert parent.there.orders() == [OFFER]
    assert len(parent.there.sockets) == 1
    assert parent.is_served_by(parent.here)
    assert parent.here.orders() == []
    parent.answer(is_ready=True)
    assert parent.there.orders() == [Settled(NUMBER, yours=True)]
    assert parent.here.orders() == MOVED
    assert parent.is_served_by(parent.there)
    assert parent.loads == {"here": 0, "there": 1}
    assert parent.placement.choose("front-door", [1, 2]) == 2
    assert parent.has_no_copy


async def test_a_viewer_stays_where_it_is_if_the_other_worker_is_not_ready(
    parent: Parent,
) -> None:
    await parent.relocate()
    parent.answer(is_ready=False)
    assert parent.here.orders() == STAYS
    assert parent.there.orders() == [OFFER]
    assert parent.is_served_by(parent.here)
    assert parent.loads == {"here": 1, "there": 0}
    assert parent.has_no_copy


async def test_a_worker_that_is_late_gets_neither_this_viewer_nor_another(
    parent: Parent,
) -> None:
    await parent.relocate()
    await trio.sleep(RELOCATION_TIMEOUT + 0.1)
    parent.offered.expire()
    parent.offered.expire()
    assert parent.here.orders() == STAYS
    other = GivenConnection(8, parent.viewer, "peer", 0.0, parent.given.address)
    parent.here.child.connections[8] = other
    relocate = Relocate(8, "there", "front-door", b"another")
    socket.send_fds(parent.here.theirs, [pack(relocate)], [parent.viewer.fileno()])
    assert await parent.here.child.receive() == relocate
    parent.offered.note(parent.here.child, relocate)
    assert parent.here.orders() == [Settled(8, yours=True)]
    parent.answer(is_ready=True)
    assert parent.there.orders() == [OFFER, Settled(NUMBER, yours=False)]
    assert parent.here.orders() == []
    assert parent.is_served_by(parent.here)
    assert parent.has_no_copy


async def test_a_viewer_stays_where_it_is_if_the_other_worker_ends(parent: Parent) -> None:
    await parent.relocate()
    parent.end(parent.there)
    assert parent.here.orders() == STAYS
    assert parent.is_served_by(parent.here)
    assert not parent.lost
    parent.answer(is_ready=True)  # said before the end, and read behind it
    assert parent.here.orders() == []
    parent.there.orders()
    assert parent.has_no_copy


async def test_a_viewer_whose_worker_ends_goes_on_at_the_other(parent: Parent) -> None:
    await parent.relocate()
    parent.end(parent.here)
    assert not parent.lost
    parent.answer(is_ready=True)
    assert parent.there.orders() == [OFFER, Settled(NUMBER, yours=True)]
    assert parent.is_served_by(parent.there)
    assert parent.loads == {"here": 0, "there": 1}
    assert parent.has_no_copy


async def test_a_viewer_that_no_worker_has_is_counted_no_more(parent: Parent) -> None:
    await parent.relocate()
    parent.end(parent.here)
    parent.end(parent.there)
    parent.there.orders()
    assert parent.lost == [parent.given]
    assert parent.loads == {"here": 0, "there": 0}
    assert parent.has_no_copy


async def test_a_worker_with_more_than_its_part_gets_no_viewers(parent: Parent) -> None:
    for _ in range(2 * LOAD_SLACK + 2):
        parent.placement.add(None, parent.there.child.key)
    await parent.relocate()
    assert parent.here.orders() == STAYS
    assert parent.there.orders() == []
    assert parent.has_no_copy


@pytest.mark.parametrize("why", ["unknown", "retiring", "draining", "itself"])
async def test_a_worker_that_gets_no_connections_gets_no_viewers(parent: Parent, why: str) -> None:
    parent.there.child.retiring = why == "retiring"
    if why == "draining":
        parent.there.child.phase = WorkerState.DRAINING
    await parent.relocate({"unknown": "nobody", "itself": "here"}.get(why, "there"))
    assert parent.here.orders() == STAYS
    assert parent.there.orders() == []
    assert parent.has_no_copy


async def test_a_viewer_whose_socket_did_not_come_stays(parent: Parent) -> None:
    parent.here.channel.descriptors.append(None)  # what came when no descriptor was free
    parent.offered.note(parent.here.child, Relocate(NUMBER, "there", "front-door", b""))
    assert parent.here.orders() == STAYS
    assert parent.there.orders() == []


async def test_a_connection_that_has_ended_is_offered_to_nobody(parent: Parent) -> None:
    del parent.here.child.connections[NUMBER]
    await parent.relocate()
    assert parent.there.orders() == []
    assert parent.has_no_copy


async def test_a_worker_cannot_answer_for_another(parent: Parent) -> None:
    await parent.relocate()
    parent.offered.note(parent.here.child, Received(NUMBER, is_ready=True))
    assert parent.is_served_by(parent.here)
    parent.answer(is_ready=True)
    assert parent.is_served_by(parent.there)


@pytest.mark.parametrize("revoked", [True, False])
async def test_what_happens_to_a_viewer_before_it_is_settled_is_told_where_it_is_served(
    parent: Parent, revoked: bool
) -> None:
    await parent.relocate()
    parent.offered.note(parent.here.child, EndElsewhere(NUMBER, revoked))
    parent.answer(is_ready=True)
    end = EndConnection(NUMBER, revoked)
    assert parent.there.orders() == [OFFER, Settled(NUMBER, yours=True), end]
    assert parent.here.orders() == MOVED


async def test_what_a_worker_noted_of_a_viewer_that_moved_is_passed_on(parent: Parent) -> None:
    await parent.relocate()
    parent.answer(is_ready=True)
    parent.there.orders()
    parent.offered.note(parent.here.child, EndElsewhere(NUMBER, revoked=True))
    assert parent.there.orders() == [EndConnection(NUMBER, revoked=True)]


async def test_only_so_many_viewers_are_on_their_way_at_once(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.workers.relocations.MAX_OFFERED", 4)
    for number in range(100, 105):
        other = GivenConnection(number, parent.viewer, "peer", 0.0, parent.given.address)
        parent.here.child.connections[number] = other
        parent.placement.add(None, parent.here.child.key)
        await parent.relocate(number=number)
        parent.there.orders()
    assert parent.here.orders() == [Settled(104, yours=True)]
    parent.offered.note(parent.there.child, Received(100, is_ready=False))
    assert parent.here.orders() == [Settled(100, yours=True)]
    await parent.relocate()
    assert parent.there.orders() == [OFFER]
    parent.end(parent.there)


async def test_a_viewer_that_no_worker_has_hears_so_before_a_worker_that_stands_still_ends(
    parent: Parent,
) -> None:
    await parent.relocate()
    parent.there.orders()
    assert parent.there.sockets  # its copy, of which it does nothing
    parent.end(parent.here)
    await trio.sleep(RELOCATION_TIMEOUT + 0.1)
    parent.offered.expire()
    assert parent.lost == [parent.given]
    assert parent.client.recv(1) == b""
    parent.end(parent.there)
