"""What a relay does about the requests of operators, and about owners who are gone."""

from __future__ import annotations

from datetime import timedelta

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define, field

from relay.auth.registry import Registry
from relay.errors import StoreUnavailable
from relay.model.access.change import EVERYTHING, Change
from relay.model.access.operator import EndRequest
from relay.operators.operator_watch import OperatorWatch
from relay.operators.reclaim import StreamReclaim
from tests.unit.memory import ANN, BOB, CAMERA, MemoryRelay

pytestmark = pytest.mark.mock_clock

ASKED = Change("operator", "1")


@define(eq=False)
class MemoryRequests:
    """The requests of operators, in memory."""

    requests: list[EndRequest] = field(factory=list)
    answers: dict[int, int] = field(factory=dict)
    away: bool = False
    looks: int = 0

    async def latest_id(self) -> int:
        await self._look()
        return len(self.requests)

    async def after(self, request_id: int) -> list[EndRequest]:
        await self._look()
        return [each for each in self.requests if each.request_id > request_id]

    async def done(self, request: EndRequest, ended: int) -> None:
        await self._look()
        assert request.request_id not in self.answers
        self.answers[request.request_id] = ended

    def ask(
        self, user_id: str | None, connection: int | None = None, node: str | None = None
    ) -> None:
        self.requests.append(EndRequest(len(self.requests) + 1, user_id, connection, node))

    async def _look(self) -> None:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if self.away:
            raise StoreUnavailable


async def test_each_request_is_done_once_and_none_of_before(nursery: trio.Nursery) -> None:
    table = MemoryRequests()
    table.ask("ann")
    ended: list[object] = []

    def end_user(user_id: str) -> int:
        ended.append(user_id)
        return 2

    def end_connection(number: int, user_id: str | None) -> bool:
        ended.append((number, user_id))
        return number == 7

    watch = OperatorWatch(table, end_user, end_connection)
    await nursery.start(watch.run)
    await trio.testing.wait_all_tasks_blocked()
    table.ask("bob")
    table.ask(None, 7)
    table.ask("bob", 8)
    watch.note(ASKED)
    watch.note(EVERYTHING)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == ["bob", (7, None), (8, "bob")]
    assert table.answers == {2: 2, 3: 1, 4: 0}
    looks = table.looks
    watch.note(Change("user", "ann"))
    await trio.sleep(100)
    assert table.looks == looks


@pytest.mark.parametrize("node", ["here", None])
async def test_what_another_node_is_asked_is_left_to_it(
    nursery: trio.Nursery, node: str | None
) -> None:
    table = MemoryRequests()
    watch = OperatorWatch(table, end_connection=lambda _number, _user: True, node_id=node)
    await nursery.start(watch.run)
    await trio.testing.wait_all_tasks_blocked()
    table.ask(None, 7, "elsewhere")
    table.ask(None, 7, "here")
    table.ask(None, 8)
    watch.note(ASKED)
    await trio.testing.wait_all_tasks_blocked()
    assert table.answers == ({2: 1, 3: 1} if node else {3: 1})


async def test_what_was_asked_while_the_store_was_away_is_done(nursery: trio.Nursery) -> None:
    table = MemoryRequests()
    watch = OperatorWatch(table)
    await nursery.start(watch.run)
    await trio.testing.wait_all_tasks_blocked()
    table.away = True
    table.ask("ann")
    watch.note(ASKED)
    await trio.sleep(10)
    assert table.answers == {}
    table.away = False
    await trio.sleep(2)
    assert table.answers == {1: 0}


async def test_the_connections_of_a_user_end_and_others_go_on(relay: MemoryRelay) -> None:
    clients = [await relay.login(ANN), await relay.login(ANN)]
    bob = await relay.login(BOB)
    registry: Registry = relay.watch.registry
    assert registry.end_user("ann") == 2
    for client in clients:
        error, close = await client.hear_end()
        assert (error["code"], close[0]) == ("SESSION_REVOKED", 4501)
    assert (await bob.ask({"type": "streams"}))["code"] == "STREAMS"
    assert registry.end_user("ann") == 0
    assert registry.end_user("nobody") == 0


async def test_a_camera_of_a_user_goes_on_when_the_sessions_of_the_user_end(
    relay: MemoryRelay,
) -> None:
    camera = await relay.login(CAMERA)
    await camera.ask({"type": "register", "streamId": "porch"})
    registry: Registry = relay.watch.registry
    assert registry.end_user("ann") == 0
    assert (await camera.ask({"type": "streams"}))["code"] == "STREAMS"
    assert registry.end(Change("service", "camera")) == 1
    error, _close = await camera.hear_end()
    assert error["code"] == "SESSION_REVOKED"


@define(eq=False)
class MemoryOwners:
    """Streams to be freed, in batches."""

    batches: list[list[str]]
    noted: bool = True
    looks: int = 0

    async def reclaim(self, age: timedelta) -> list[str]:
        await trio.lowlevel.checkpoint()
        assert age == timedelta(days=30)
        self.looks += 1
        return self.batches.pop(0) if self.batches else []

    async def note_deletions(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.noted


async def test_streams_are_freed_batch_by_batch(nursery: trio.Nursery) -> None:
    owners = MemoryOwners([["a", "b"], ["c"]])
    await nursery.start(StreamReclaim(owners, owners, timedelta(days=30)).run)
    await trio.testing.wait_all_tasks_blocked()
    assert owners.looks == 3
    owners.batches.append(["d"])
    await trio.sleep(600)
    await trio.testing.wait_all_tasks_blocked()
    assert owners.looks == 5


async def test_a_missing_trigger_is_said_once(nursery: trio.Nursery) -> None:
    owners = MemoryOwners([], noted=False)
    with structlog.testing.capture_logs() as lines:
        await nursery.start(StreamReclaim(owners, owners, timedelta(days=30)).run)
        await trio.sleep(5000)
    said = [line["event"] for line in lines]
    assert sum("no trigger notes deleted users" in event for event in said) == 1
