"""A viewer moves to the worker that has the phone of its stream, or stays; the client sees no
difference. Two relays with their real connection code, and sockets of the kernel."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from attrs import define, field
from wsproto import events

from relay.connection.relocation import MAX_GRANTS, RelocatedViewer, Relocation, identity_of
from relay.guard.connection_limits import Caps, ConnectionLimits
from relay.guard.guard import Guard, SessionLimits
from relay.hub.remote import RemoteState
from relay.model.access.change import Change
from relay.model.access.identity import User
from relay.server import Server
from relay.transport import wire
from relay.transport.acceptance import Acceptance
from relay.transport.handed import HandedListener
from relay.transport.link import SocketLink, set_options
from tests.unit.memory import ANN, BOB, SENTRY, Client, Closed, MemoryRelay, open_relay

SUBSCRIBE = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"], "id": "1"}
TIMESTAMP = re.compile(rb'"timestamp":\d+|timestamp\xcf.{8}', re.DOTALL)
REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))
RESTARTING = 4012


pytestmark = pytest.mark.mock_clock


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection as the kernel makes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    set_options(ours)
    return ours, theirs


@define(eq=False)
class Directory:
    """Knows of the streams of the other worker."""

    here: MemoryRelay
    there: MemoryRelay
    asked: int = 0

    async def find(self, stream_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        found = self.there.hub.find(stream_id)
        if found is not None and found.live:
            assert found.owner_id is not None
            state = RemoteState("there", 1, found.epoch, found.owner_id, found.status, None)
            stream = self.here.hub.open(stream_id)
            if not stream.live:
                self.here.hub.start_remote(stream, state)

    async def listed(self, *_asked: object) -> list[Any]:
        return []

    def is_near(self, node_id: str) -> bool:
        return node_id == "there"


@define(eq=False)
class Worker:
    """A worker, and what it would say to the parent."""

    relay: MemoryRelay
    server: Server = field(init=False)
    listener: HandedListener = field(init=False, factory=lambda: HandedListener(120.0))
    sent: list[Relocation] = field(factory=list)
    lost: list[Relocation] = field(factory=list)
    """Viewers that it did not serve in the end."""
    left: list[int] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.server = Server(self.relay.connection_context(), relocations=self)

    def send(self, relocation: Relocation) -> None:
        self.sent.append(relocation)

    def note_left(self, relocation: Relocation) -> None:
        self.lost.append(relocation)

    def acceptance(self, number: int) -> Acceptance:
        return Acceptance(number, trio.current_time(), on_left=self.left.append)

    @property
    def is_empty(self) -> bool:
        """Whether no trace of a connection is left."""
        limits, metrics = self.relay.guard.connections, self.relay.metrics
        return not (
            self.server._connections
            or self.server._undecided
            or self.relay.watch.registry
            or limits._admitted
            or limits._users
            or limits.unauthenticated
            or metrics.connections
            or metrics.authenticated
        )


@define(eq=False)
class Machine:
    """Two workers; phones are at `there`, and clients come to `here`."""

    here: Worker
    there: Worker
    directory: Directory
    numbers: int = 0
    links: list[SocketLink] = field(factory=list)
    """The clients' ends."""

    def connect(self, *, msgpack: bool = False, to: Worker | None = None) -> Client:
        """A client whose connection the parent has just given to a worker."""
        ours, theirs = tcp_pair()
        self.numbers += 1
        worker = to or self.here
        worker.listener.put(ours, "192.0.2.1:50000", worker.acceptance(self.numbers))
        self.links.append(SocketLink(theirs))
        link: Any = self.links[-1]
        return Client(link, msgpack=msgpack)

    async def login(self, token: str = ANN, **options: Any) -> Client:
        client = self.connect(**options)
        await client.upgrade()
        reply = await client.ask({"type": "auth", "token": token})
        assert reply["type"] == "success", reply
        return client

    async def offered(self) -> Relocation:
        """The viewer that has just left the first worker."""
        await trio.testing.wait_all_tasks_blocked()
        (relocation,) = self.here.sent
        return relocation

    def bring(self, relocation: Relocation) -> bool:
        """Have the other worker ready for a viewer, as the parent does."""
        assert relocation.connected is not None
        viewer = RelocatedViewer.decode(relocation.viewer.encode())
        coming = Relocation(
            *(relocation.number, viewer, identity_of(viewer.identity)),
            *("there", relocation.stream_id, relocation.connected.dup()),
        )
        is_ready = self.there.server.receive(coming, self.there.acceptance(relocation.number))
        if not is_ready:
            coming.close()
        return is_ready

    def settle(self, number: int, *, moves: bool) -> None:
        self.there.server.settle(number, ours=moves)
        self.here.server.settle(number, ours=not moves)

    async def move(self) -> None:
        """Move the viewer that has just subscribed."""
        relocation = await self.offered()
        assert self.bring(relocation)
        self.settle(relocation.number, moves=True)

    async def moves(self, client: Client) -> bool:
        """Whether a viewer that has just subscribed is to be moved; it is answered either way."""
        await trio.testing.wait_all_tasks_blocked()
        is_offered = bool(self.here.sent)
        if is_offered:
            await self.move()
            self.here.sent.clear()
        while (await client.receive_type("success"))["code"] != "SUBSCRIBED":
            pass
        return is_offered


@asynccontextmanager
async def open_machine(guard: Callable[[], Guard] = Guard) -> AsyncIterator[Machine]:
    async with open_relay() as first, open_relay() as second, trio.open_nursery() as nursery:
        second.verifier, second.owners = first.verifier, first.owners
        first.guard, second.guard = guard(), guard()
        directory = Directory(first, second)
        first.directory = first.neighbours = directory
        here, there = Worker(first), Worker(second)
        for each in (here, there):
            nursery.start_soon(each.server.run, [each.listener])
        machine = Machine(here, there, directory)
        yield machine
        nursery.cancel_scope.cancel()
    for link in machine.links:
        link.close()


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with open_machine() as machine:
        yield machine


async def phone_of(machine: Machine) -> Client:
    return await machine.there.relay.phone()


async def send_frame(phone: Client, data: str = "AAAA") -> None:
    await phone.send({"type": "video-frame", "streamId": "front-door", "data": data})


async def settled() -> None:
    """Wait until all has been done that is not due later."""
    await trio.testing.wait_all_tasks_blocked()


# -- the usual case


@pytest.mark.parametrize("msgpack", [False, True])
async def test_a_viewer_without_a_hint_ends_at_the_phone_and_gets_frames(
    machine: Machine, msgpack: bool
) -> None:
    phone = await phone_of(machine)
    viewer = await machine.login(msgpack=msgpack)
    await viewer.send(SUBSCRIBE)
    await machine.move()
    reply = await viewer.receive_type("success")
    assert (reply["code"], reply["id"], reply["streamId"]) == ("SUBSCRIBED", "1", "front-door")
    assert (await viewer.receive_type("status"))["status"] == "online"
    await send_frame(phone)
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    assert machine.here.relay.hub.find("front-door") is None
    await settled()
    assert machine.here.is_empty
    assert machine.here.relay.metrics.endings.total() == 0
    assert machine.here.relay.metrics.connections_accepted == 1
    assert machine.there.relay.metrics.connections == 2  # one is the phone's
    assert machine.here.lost
    assert not machine.here.left


async def read_until(client: Client, end: bytes) -> bytes:
    """The bytes that come, up to these."""
    found, buffer = b"", bytearray(65536)
    with trio.fail_after(60):
        while end not in found:
            await client.link.wait_readable()
            found += buffer[: client.link.recv_into(memoryview(buffer))]
    return found


async def transcript(machine: Machine, *, msgpack: bool, to: Worker) -> bytes:
    """All bytes that a viewer gets."""
    client = machine.connect(msgpack=msgpack, to=to)
    await client.upgrade()
    await client.send({"type": "auth", "token": ANN, "id": "a"})
    found = await read_until(client, b"AUTHENTICATED")
    await client.send(SUBSCRIBE)
    if to is machine.here:
        await machine.move()
    found += await read_until(client, b"online")
    await client.send({"type": "unsubscribe", "streamId": "front-door", "id": "2"})
    found += await read_until(client, b"UNSUBSCRIBED")
    client.link.close()
    return TIMESTAMP.sub(b"", found)


@pytest.mark.parametrize("msgpack", [False, True])
async def test_the_bytes_are_those_of_a_viewer_that_was_there_from_the_start(
    machine: Machine, msgpack: bool
) -> None:
    await phone_of(machine)
    moved = await transcript(machine, msgpack=msgpack, to=machine.here)
    direct = await transcript(machine, msgpack=msgpack, to=machine.there)
    assert moved == direct


async def test_what_comes_behind_the_subscribe_is_answered_in_order(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    await viewer.send({"type": "unsubscribe", "streamId": "front-door", "id": "2"})
    await viewer.send({"type": "auth", "token": ANN, "id": "3"})
    assert machine.bring(relocation)
    await trio.testing.wait_all_tasks_blocked()
    machine.settle(relocation.number, moves=True)
    answers = [(await viewer.receive_type("success")) for _ in range(3)]
    assert [each["id"] for each in answers] == ["1", "2", "3"]


async def test_a_client_that_sends_all_at_once_is_moved_too(machine: Machine) -> None:
    await phone_of(machine)
    viewer = machine.connect()
    await viewer.upgrade()
    await viewer.send({"type": "auth", "token": ANN, "parts": True, "progressInterval": 200})
    await viewer.send(SUBSCRIBE)
    await machine.move()
    assert (await viewer.receive_type("success"))["code"] == "AUTHENTICATED"
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"
    (connection,) = machine.there.server._connections.values()
    assert connection.peer.takes_parts
    assert connection.peer.stream.progress_interval == 0.2
    assert connection.peer.address.text == "192.0.2.1"


async def test_the_end_of_a_moved_viewer_is_counted_once_and_leaves_nothing(
    machine: Machine,
) -> None:
    viewer_count = machine.there.relay.metrics
    phone = await phone_of(machine)
    viewer = await machine.login(BOB)
    machine.here.relay.verifier.identities[BOB] = User(
        "bob", "session-of-bob", datetime.now(UTC) + timedelta(days=1), frozenset({"*"})
    )
    machine.here.relay.watch._note(Change("user", "bob"))
    await trio.sleep(0.05)
    await viewer.send(SUBSCRIBE)
    await machine.move()
    await viewer.receive_type("status")
    viewer.link.close()
    await settled()
    assert viewer_count.endings.total() == 1
    await settled()
    assert machine.there.left == [1]
    assert machine.here.is_empty
    phone.link.close()


async def test_a_viewer_that_leaves_meanwhile_is_noticed_by_the_worker_that_has_it(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    viewer.link.close()
    assert machine.bring(relocation)
    machine.settle(relocation.number, moves=True)
    await settled()
    assert machine.there.left == [1]
    assert machine.here.is_empty


# -- it stays


async def test_a_viewer_that_the_other_worker_does_not_take_is_served_here_once(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    await viewer.send({"type": "unsubscribe", "streamId": "front-door", "id": "2"})
    machine.here.server.settle(relocation.number, ours=True)
    answers = [(await viewer.receive_type("success")) for _ in range(2)]
    assert [each["code"] for each in answers] == ["SUBSCRIBED", "UNSUBSCRIBED"]
    assert len(machine.here.sent) == 1
    assert machine.here.relay.metrics.connections == 1
    viewer.link.close()
    await settled()
    assert machine.here.left == [1]
    assert machine.here.is_empty
    assert machine.here.relay.metrics.endings.total() == 1


async def test_a_worker_that_was_ready_for_a_viewer_that_stays_touches_nothing(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.bring(relocation)
    await trio.testing.wait_all_tasks_blocked()
    machine.settle(relocation.number, moves=False)
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"
    assert machine.there.lost
    assert machine.there.server._connections == {}
    assert (await viewer.ask({**SUBSCRIBE, "id": "2"}))["id"] == "2"


async def subscribe_twice(viewer: Client) -> None:
    both = viewer.protocol
    await viewer.send_bytes(
        b"".join(both.send(_text(each)) for each in (SUBSCRIBE, {**SUBSCRIBE, "streamId": "other"}))
    )


def _text(message: dict[str, Any]) -> Any:
    return events.TextMessage(data=json.dumps(message))


async def test_who_sends_more_at_once_than_one_subscribe_stays(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await subscribe_twice(viewer)
    assert not await machine.moves(viewer)


async def test_who_sends_a_ping_with_the_subscribe_stays_and_gets_its_pong(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    ping = bytes((wire.FIN | wire.PING, wire.MASKED | 2, 0, 0, 0, 0)) + b"hi"
    await viewer.send_bytes(ping + viewer.protocol.send(_text(SUBSCRIBE)))
    found = await read_until(viewer, b"SUBSCRIBED")
    assert bytes((wire.FIN | wire.PONG, 2)) + b"hi" in found
    assert not machine.here.sent


async def test_who_has_sent_a_part_of_the_next_message_stays(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    following = viewer.protocol.send(_text({"type": "streams", "id": "s"}))
    await viewer.send_bytes(viewer.protocol.send(_text(SUBSCRIBE)) + following[:1])
    await trio.testing.wait_all_tasks_blocked()
    await viewer.send_bytes(following[1:])
    assert not machine.here.sent
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"


@pytest.mark.parametrize(
    "first",
    [
        {"type": "streams"},
        {"type": "subscribe", "streamId": "other", "consumes": ["video-frame"]},
        {"type": "nonsense"},
        {**SUBSCRIBE, "consumes": ["alert"]},
    ],
)
async def test_who_has_done_something_else_before_stays(
    machine: Machine, first: dict[str, Any]
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.ask(first)
    await viewer.send(SUBSCRIBE)
    assert not await machine.moves(viewer)


async def test_who_has_sent_an_invalid_message_before_it_authenticated_stays(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = machine.connect()
    await viewer.upgrade()
    assert (await viewer.ask({"type": "auth"}))["type"] == "error"
    assert (await viewer.ask({"type": "auth", "token": ANN}))["type"] == "success"
    await viewer.send(SUBSCRIBE)
    assert not await machine.moves(viewer)


async def test_a_session_that_ends_soon_is_not_moved(machine: Machine) -> None:
    await phone_of(machine)
    soon = datetime.now(UTC) + timedelta(seconds=70)
    machine.here.relay.verifier.identities[ANN] = User("ann", "session-of-ann", soon)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    assert not await machine.moves(viewer)


async def test_who_has_more_grants_than_go_through_the_parent_stays(machine: Machine) -> None:
    await phone_of(machine)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    granted = frozenset(map(str, range(MAX_GRANTS + 1)))
    machine.here.relay.verifier.identities[ANN] = User("ann", "session-of-ann", tomorrow, granted)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    assert not await machine.moves(viewer)


async def test_a_session_goes_on_while_its_viewer_waits(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    seconds_left = relocation.viewer.identity["remaining"]
    await trio.sleep(20)
    machine.here.server.settle(relocation.number, ours=True)
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"
    (connection,) = machine.here.server._connections.values()
    assert connection._session is not None
    assert connection._session.seconds_left == pytest.approx(seconds_left - 20, abs=1)


async def test_a_stream_that_crosses_already_for_others_keeps_its_viewers(
    machine: Machine,
) -> None:
    await phone_of(machine)
    first = await machine.login()
    await first.send(SUBSCRIBE)
    relocation = await machine.offered()
    machine.here.server.settle(relocation.number, ours=True)
    await first.receive_type("status")
    machine.here.sent.clear()
    second = await machine.login()
    await second.send(SUBSCRIBE)
    assert not await machine.moves(second)


async def test_who_may_not_see_the_stream_is_not_moved_and_is_told_nothing(
    machine: Machine,
) -> None:
    await phone_of(machine)
    stranger = await machine.login(BOB)
    answers = []
    for stream_id in ("front-door", "no-such-stream"):
        asked = machine.directory.asked
        reply = await stranger.ask({**SUBSCRIBE, "streamId": stream_id})
        answers.append((reply["epoch"], machine.directory.asked - asked))
    assert answers == [(0, 1), (0, 1)]
    assert not machine.here.sent


async def test_a_stream_that_nobody_has_is_not_kept_in_mind(machine: Machine) -> None:
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    assert not await machine.moves(viewer)
    await viewer.send({"type": "unsubscribe", "streamId": "front-door"})
    await viewer.receive_type("success")
    assert machine.here.relay.hub.find("front-door") is None


# -- what happens meanwhile


async def how_it_ends(client: Client) -> tuple[str, tuple[int, str]]:
    error, close = await client.hear_end()
    return error["code"], close


async def test_a_session_that_is_revoked_at_the_new_worker_meanwhile_ends(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.bring(relocation)
    assert machine.there.relay.watch.registry.end(Change("user", "ann")) >= 1
    machine.settle(relocation.number, moves=True)
    assert await how_it_ends(viewer) == REVOKED


async def test_a_session_that_is_revoked_at_the_old_worker_meanwhile_is_passed_on(
    machine: Machine,
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.here.relay.watch.registry.end(Change("user", "ann")) == 1
    assert machine.bring(relocation)
    machine.settle(relocation.number, moves=True)
    machine.there.server.revoke(relocation.number)  # as the parent passes it on
    await settled()
    assert bool(machine.here.lost)
    assert machine.here.lost[0].is_revoked
    assert await how_it_ends(viewer) == REVOKED


async def test_a_session_that_ended_where_nobody_watched_it_is_read_again(
    machine: Machine,
) -> None:
    machine.here.relay.verifier.identities["other"] = User(
        "ann", "other", datetime.now(UTC) + timedelta(days=1)
    )
    await phone_of(machine)
    viewer = await machine.login("other")
    machine.there.relay.watch._poll_interval = math.inf
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    del machine.here.relay.verifier.identities["other"]  # and no notification comes
    assert machine.bring(relocation)
    moved_at = trio.current_time()
    machine.settle(relocation.number, moves=True)
    assert await how_it_ends(viewer) == REVOKED
    assert trio.current_time() - moved_at < 1  # everybody is read again much later


@pytest.mark.parametrize("moves", [True, False])
async def test_an_operator_ends_a_viewer_that_neither_worker_has(
    machine: Machine, moves: bool
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.bring(relocation)
    owner = machine.there if moves else machine.here
    assert owner.server.end(relocation.number, "ann")
    assert not owner.server.end(relocation.number, "somebody else")
    machine.settle(relocation.number, moves=moves)
    error, _ = await how_it_ends(viewer)
    assert error == "ENDED_BY_OPERATOR"


@pytest.mark.parametrize("moves", [True, False])
async def test_a_viewer_whose_worker_drains_meanwhile_is_asked_to_come_back(
    machine: Machine, moves: bool
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.bring(relocation)
    owner = machine.there if moves else machine.here
    owner.server.drain(10.0)
    await trio.testing.wait_all_tasks_blocked()
    machine.settle(relocation.number, moves=moves)
    notice = await viewer.receive_type("notice")
    assert notice["code"] == "SERVER_RESTARTING"
    assert (await viewer.closing())[0] == RESTARTING


async def test_a_worker_that_drains_takes_no_viewer(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    machine.there.server.drain(10.0)
    assert not machine.bring(relocation)
    machine.here.server.settle(relocation.number, ours=True)
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"


async def test_viewers_of_which_the_parent_decides_no_more_are_closed(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert machine.bring(relocation)
    for each in (machine.here, machine.there):
        each.server.abandon_relocations()
    with pytest.raises(Closed) as closed:
        await viewer.receive()
    assert closed.value.args == (1006, None)  # only the end of the bytes


async def test_a_viewer_that_was_decided_on_outlives_the_parent(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    machine.here.server.settle(relocation.number, ours=True)
    machine.here.server.abandon_relocations()
    assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"


async def test_a_drain_does_not_wait_for_the_parent_for_ever(machine: Machine) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    await machine.offered()
    machine.here.server.drain(0.2)
    with pytest.raises(Closed) as closed:
        await viewer.receive()
    assert closed.value.args == (1006, None)  # only the end of the bytes
    await settled()
    assert machine.here.is_empty


@pytest.mark.parametrize("moves", [True, False])
async def test_the_peer_hears_the_end_while_another_process_has_a_copy_of_the_socket(
    machine: Machine, moves: bool
) -> None:
    await phone_of(machine)
    viewer = await machine.login()
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    assert relocation.connected is not None
    with relocation.connected.dup():
        assert machine.bring(relocation)
        machine.settle(relocation.number, moves=moves)
        await viewer.receive_type("status")
        assert (machine.there if moves else machine.here).server.end(relocation.number)
        await how_it_ends(viewer)
        await trio.sleep(5)
        await settled()
        assert viewer.link.recv_into(memoryview(bytearray(64))) == 0


# -- limits


def caps(**changed: Any) -> Guard:
    usual = Caps(connections=10, per_address=10, per_user=2, unauthenticated=10)
    return Guard(connections=ConnectionLimits(attrs.evolve(usual, **changed)))


@pytest.mark.parametrize("cap", ["connections", "per_address", "per_user"])
async def test_a_viewer_takes_nobodys_place_at_the_new_worker(cap: str) -> None:
    async with open_machine(lambda: caps(**{cap: 2})) as machine:
        await machine.there.relay.phone()
        other = await machine.login(to=machine.there)
        viewer = await machine.login()
        await viewer.send(SUBSCRIBE)
        relocation = await machine.offered()
        assert not machine.bring(relocation)
        machine.here.server.settle(relocation.number, ours=True)
        assert (await viewer.receive_type("success"))["code"] == "SUBSCRIBED"
        assert (await other.ask({"type": "streams"}))["type"] == "success"


@pytest.mark.parametrize("cap", ["connections", "per_address", "per_user"])
async def test_viewers_that_come_at_once_take_nobodys_place_together(cap: str) -> None:
    async with open_machine(lambda: caps(**{"per_user": 10, cap: 3})) as machine:
        await machine.there.relay.phone()
        await machine.login(to=machine.there)
        viewers = [await machine.login() for _ in range(2)]
        for each in viewers:
            await each.send(SUBSCRIBE)
        await settled()
        ready = [machine.bring(each) for each in machine.here.sent]
        assert ready == [True, False]
        for relocation, moves in zip(machine.here.sent, ready, strict=True):
            machine.settle(relocation.number, moves=moves)
        for each in viewers:
            assert (await each.receive_type("success"))["code"] == "SUBSCRIBED"


async def test_subscriptions_of_viewers_that_come_at_once_count() -> None:
    limits = SessionLimits(max_subscriptions_of_user=1)
    async with open_machine(lambda: Guard(session_limits=limits)) as machine:
        await machine.there.relay.phone()
        viewers = [await machine.login() for _ in range(2)]
        for each in viewers:
            await each.send(SUBSCRIBE)
        await settled()
        assert [machine.bring(each) for each in machine.here.sent] == [True, False]


async def test_a_user_with_all_subscriptions_at_the_new_worker_stays() -> None:
    limits = SessionLimits(max_subscriptions_of_user=1)
    async with open_machine(lambda: Guard(session_limits=limits)) as machine:
        await machine.there.relay.phone()
        other = await machine.login(to=machine.there)
        await other.ask({**SUBSCRIBE, "streamId": "other"})
        viewer = await machine.login()
        await viewer.send(SUBSCRIBE)
        assert not machine.bring(await machine.offered())


# -- what goes over


@pytest.mark.parametrize("token", [ANN, SENTRY])
async def test_an_identity_survives_the_way(machine: Machine, token: str) -> None:
    await phone_of(machine)
    viewer = await machine.login(token)
    await viewer.send(SUBSCRIBE)
    relocation = await machine.offered()
    viewer_state = RelocatedViewer.decode(relocation.viewer.encode())
    identity = identity_of(viewer_state.identity)
    assert identity == relocation.identity
    assert identity.prefixes == relocation.identity.prefixes
    if isinstance(identity, User):
        assert isinstance(relocation.identity, User)
        assert identity.remaining == pytest.approx(86400, abs=60)
    assert viewer_state.token == token
    assert token not in repr((relocation, viewer_state))
