"""One connection of a client: its requests, its events, and the tasks that end with it."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client.connection.connection import ClientConnection, open_connection
from relay.client.connection.messages import Unreadable
from relay.client.errors import Disconnected, ServerError
from relay.client.events import Alert, Event
from relay.client.state.event_queue import MAX_UNREAD_ALERTS, EventQueue
from tests.unit.memory.scripted_server import open_scripted_server

pytestmark = pytest.mark.mock_clock


async def read(connection: ClientConnection, events: list[object]) -> None:
    async for event in connection:
        events.append(event)  # noqa: PERF401 (as far as it comes)


async def test_nothing_behind_an_answer_is_read_before_the_caller_awaits_again() -> None:
    async with open_scripted_server() as (socket, server), open_connection(socket) as connection:
        events: list[object] = []
        counts = []

        async def ask() -> None:
            await connection.ask("subscribe", stream_id="door").answer()
            counts.append(len(events))

        connection.start(read, connection, events)
        for _ in range(20):  # tasks that are ready run in any order
            events.clear()
            connection.start(ask)
            request = await server.receive()
            await server.alert(1)
            await server.send("success", id=request["id"])
            await server.alert(2)
            await trio.testing.wait_all_tasks_blocked()
            assert len(events) == 2
        assert counts == [1] * 20


async def test_who_is_cancelled_while_waiting_for_an_answer_holds_nothing_up() -> None:
    async with open_scripted_server() as (socket, server), open_connection(socket) as connection:
        events: list[object] = []
        connection.start(read, connection, events)
        with trio.move_on_after(1):
            await connection.ask("subscribe", stream_id="door").answer()
        request = await server.receive()
        await server.send("success", id=request["id"])
        await server.alert(1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(events) == 1


async def test_requests_and_tasks_end_with_the_connection() -> None:
    async with open_scripted_server() as (socket, server), open_connection(socket) as connection:
        events: list[object] = []
        connection.start(read, connection, events)
        connection.start(trio.sleep_forever)
        request = connection.ask("streams")
        await server.receive()
        connection.leave("enough")
        with pytest.raises(Disconnected, match=r"^closed with 1006 \(enough\)$"):
            await request.answer()
        with pytest.raises(Disconnected):
            connection.ask("streams")


async def test_an_answer_that_cannot_be_read_ends_the_connection() -> None:
    async with open_scripted_server() as (socket, _), open_connection(socket) as connection:

        async def work() -> None:
            raise Unreadable("no stream")

        connection.start(work)
        events: list[Event] = [event async for event in connection]
        assert events == []
        assert connection.disconnected().reason == "cannot read the relay: no stream"


async def test_the_refusal_of_a_request_is_raised_where_it_was_asked() -> None:
    async with open_scripted_server() as (socket, server), open_connection(socket) as connection:
        connection.start(read, connection, [])
        request = connection.ask("register")
        asked = await server.receive()
        await server.send("error", id=asked["id"], code="RATE_LIMITED", message="", retryAfter=9)
        with pytest.raises(ServerError) as caught:
            await request.answer()
        assert caught.value.retry_after == 9


async def test_a_request_leaves_though_frames_are_acknowledged_all_the_time() -> None:
    async with open_scripted_server() as (socket, server), open_connection(socket) as connection:
        connection.start(read, connection, [])

        async def acknowledge() -> None:
            for seq in range(1, 301):
                for stream_id in ("door", "yard"):
                    connection.acknowledge(stream_id, seq, 1)
                await trio.lowlevel.checkpoint()

        connection.start(acknowledge)
        for _ in range(4):
            await server.receive()
        connection.ask("streams")
        sent = [(await server.receive())["type"] for _ in range(10)]
        assert "streams" in sent
        assert sent.count("ack") == 9


async def test_room_in_the_queue_is_told_when_half_of_it_is_free() -> None:
    queue = EventQueue()
    for number in range(MAX_UNREAD_ALERTS):
        queue.put(Alert(number, "door", "low", "m", 1))
    assert queue.room == 0
    rooms = []

    async def wait() -> None:
        await queue.wait_for_room()
        rooms.append(queue.room)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for _ in range(MAX_UNREAD_ALERTS // 2):
            await trio.testing.wait_all_tasks_blocked()
            assert rooms == []
            await queue.get()
    assert rooms == [MAX_UNREAD_ALERTS // 2]
