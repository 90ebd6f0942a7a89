"""The client against a server at the other end of a memory stream."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from relay.client import (
    Alert,
    AlertAccepted,
    Authenticated,
    Disconnected,
    Frame,
    Notice,
    Problem,
    Registered,
    ServerError,
    SimpleClient,
    Status,
    Subscribed,
    Unsubscribed,
)
from relay.client.simple_client import DEFAULT_WINDOW, MAX_UNREAD_EVENTS, open_client
from relay.concurrency.background import open_background
from tests.unit.memory.scripted_server import ScriptedServer, open_scripted_server

T = TypeVar("T")

TOKEN = "a-very-secret-token"


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[SimpleClient, ScriptedServer]]:
    """An authenticated client and its server."""
    async with open_scripted_server() as (socket, server), open_background() as nursery:
        nursery.start_soon(partial(server.answer, userId="u1", sessionId="s1", expiresAt=9))
        async with open_client(socket, TOKEN) as client:
            yield client, server


async def ask(
    server: ScriptedServer, request: Awaitable[T], **fields: object
) -> tuple[T, dict[str, Any]]:
    """What a request sent and what it returned when the server accepts it with these fields."""
    heard: dict[str, Any] = {}

    async def answer() -> None:
        heard.update(await server.answer(**fields))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        reply = await request
    return reply, heard


async def test_the_first_message_is_auth_with_the_token() -> None:
    async with open_scripted_server() as (socket, server), trio.open_nursery() as nursery:

        async def authenticate() -> None:
            async with open_client(socket, TOKEN) as client:
                assert client.session == Authenticated("u1", "s1", 9)

        nursery.start_soon(authenticate)
        request = await server.answer(userId="u1", sessionId="s1", expiresAt=9)
        assert request == {"type": "auth", "token": TOKEN, "id": 1}


async def test_a_refused_token_raises_the_error_of_the_server() -> None:
    async with trio.open_nursery() as nursery, open_scripted_server() as (socket, server):

        async def refuse() -> None:
            request = await server.receive()
            text = "Invalid or expired token"
            await server.send("error", id=request["id"], code="AUTH_FAILED", message=text)
            await server.socket.aclose(1008, "Authentication failed")

        nursery.start_soon(refuse)
        with pytest.raises(ServerError, match=r"^AUTH_FAILED: Invalid or expired token$") as caught:
            async with open_client(socket, TOKEN):
                pytest.fail("is not authenticated")
        assert caught.value.retry_after is None
        assert TOKEN not in repr(caught.value)


async def test_requests_say_what_the_protocol_asks_for_and_return_the_reply() -> None:
    async with open_pair() as (client, server):
        reply: object
        reply, heard = await ask(
            server, client.register("door", metadata={"codec": "jpeg"}), streamId="door"
        )
        assert reply == Registered("door")
        assert heard == {
            "type": "register",
            "id": 2,
            "streamId": "door",
            "produces": ["video-frame"],
            "consumes": ["alert"],
            "metadata": {"codec": "jpeg"},
        }
        reply, heard = await ask(server, client.subscribe("door"), streamId="door", epoch=7)
        assert reply == Subscribed("door", 7)
        assert (heard["consumes"], heard["window"]) == (["video-frame", "alert"], DEFAULT_WINDOW)
        reply, heard = await ask(server, client.unsubscribe("door"), streamId="door")
        assert reply == Unsubscribed("door")
        alert = client.alert("door", "somebody", severity="high", timestamp=5, alert_key="k")
        reply, heard = await ask(server, alert, alertId=3, streamId="door")
        assert reply == AlertAccepted(3, "door")
        assert heard == {
            "type": "alert",
            "id": 5,
            "streamId": "door",
            "severity": "high",
            "message": "somebody",
            "timestamp": 5,
            "alertKey": "k",
        }


async def test_replies_find_their_requests_whatever_their_order() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def subscribe(stream: str) -> None:
            assert (await client.subscribe(stream)).stream_id == stream

        nursery.start_soon(subscribe, "a")
        nursery.start_soon(subscribe, "b")
        for request in reversed([await server.receive(), await server.receive()]):
            stream = request["streamId"]
            await server.send("success", id=request["id"], streamId=stream, epoch=1)


async def test_a_second_reply_to_a_request_does_no_harm() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def answer_twice() -> None:
            request = await server.receive()
            for epoch in (1, 2):
                await server.send("success", id=request["id"], streamId="door", epoch=epoch)
            await server.answer(streamId="gate", epoch=3)

        nursery.start_soon(answer_twice)
        assert await client.subscribe("door") == Subscribed("door", 1)
        assert await client.subscribe("gate") == Subscribed("gate", 3)


async def test_an_error_with_the_id_of_a_request_is_raised_there() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def refuse() -> None:
            request = await server.receive()
            await server.send(
                "error", id=request["id"], code="STORE_UNAVAILABLE", message="away", retryAfter=50
            )

        nursery.start_soon(refuse)
        with pytest.raises(ServerError) as caught:
            await client.register("door")
        assert (caught.value.code, caught.value.retry_after) == ("STORE_UNAVAILABLE", 50)


async def test_a_frame_is_sent_as_base64_with_the_time() -> None:
    async with open_pair() as (client, server):
        await client.send_frame(b"\xff\xd8picture", timestamp=12)
        assert await server.receive() == {
            "type": "video-frame",
            "data": base64.b64encode(b"\xff\xd8picture").decode(),
            "timestamp": 12,
        }
        await client.send_frame(b"")
        assert (await server.receive())["timestamp"] > 1_700_000_000_000


async def test_iterating_gives_events_in_order_and_passes_over_what_it_does_not_know() -> None:
    async with open_pair() as (client, server):
        await server.send("status", streamId="door", epoch=7, status="online", timestamp=1)
        await server.frame(4, data=b"\x00\x01")
        await server.send("hologram", streamId="door")
        await server.send("success", code="UNASKED", message="")
        await server.alert(8)
        await server.send("notice", code="SERVER_RESTARTING", retryAfter=10, timestamp=1, new=True)
        await server.send("error", code="NOT_REGISTERED", message="no")
        await server.socket.aclose(1000)
        frame = Frame("door", 4, 1.5, 2, "AAE=")
        assert [event async for event in client] == [
            Status("door", 7, "online", 1),
            frame,
            Alert(8, "door", "low", "m", 3),
            Notice("SERVER_RESTARTING", 1, retry_after=10),
            Problem("NOT_REGISTERED", "no"),
        ]
        assert frame.data == b"\x00\x01"


async def test_of_the_unread_frames_of_a_stream_only_the_newest_is_kept() -> None:
    async with open_pair() as (client, server):
        for seq in range(5):
            await server.frame(seq, "door")
            await server.frame(seq, "gate")
            await server.alert(seq)
        await server.socket.aclose(1000)
        events = [event async for event in client]
        assert [e.alert_id for e in events if isinstance(e, Alert)] == [0, 1, 2, 3, 4]
        frames = [(e.stream_id, e.seq) for e in events if isinstance(e, Frame)]
        assert frames == [("door", 4), ("gate", 4)]


async def test_a_client_with_too_many_unread_events_stops_reading_and_loses_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def send_alerts() -> None:
            for number in range(3 * MAX_UNREAD_EVENTS):
                await server.alert(number)
            await server.socket.aclose(1000)

        nursery.start_soon(send_alerts)
        await trio.testing.wait_all_tasks_blocked()
        numbers = [event.alert_id async for event in client if isinstance(event, Alert)]
        assert numbers == list(range(3 * MAX_UNREAD_EVENTS))


async def status(server: ScriptedServer, epoch: int) -> None:
    await server.send("status", streamId="door", epoch=epoch, status="streaming", timestamp=1)


async def test_frames_are_acknowledged_in_the_life_that_they_are_of() -> None:
    async with open_pair() as (client, server):
        await ask(server, client.subscribe("door"), streamId="door", epoch=7)
        for epoch in (7, 9):
            await status(server, epoch)
            await server.frame(1)
            ack = {"type": "ack", "streamId": "door", "seq": 1, "epoch": epoch}
            assert await server.receive() == ack
        await server.send("status", streamId="door", epoch=0, status="offline", timestamp=1)
        await server.frame(2)  # it was under way
        assert (await server.receive())["epoch"] == 9


async def test_only_the_last_of_many_frames_is_acknowledged() -> None:
    async with open_pair() as (client, server):
        await ask(server, client.subscribe("door"), streamId="door", epoch=0)
        for seq in range(1, 20):
            await server.frame(seq)
        acks = [await server.receive()]
        while acks[-1]["seq"] < 19:
            acks.append(await server.receive())
        assert "epoch" not in acks[0]  # nothing was said of it
        assert [ack["seq"] for ack in acks] == sorted({ack["seq"] for ack in acks})


async def test_nothing_is_acknowledged_without_a_window() -> None:
    async with open_pair() as (client, server):
        _, heard = await ask(
            server, client.subscribe("door", window=None), streamId="door", epoch=7
        )
        assert "window" not in heard
        await server.frame(1)
        assert isinstance(await anext(client), Frame)
        await ask(server, client.subscribe("door", window=3), streamId="door", epoch=7)
        await ask(server, client.unsubscribe("door"), streamId="door")
        await server.frame(2)
        await trio.testing.wait_all_tasks_blocked()
        _, heard = await ask(server, client.unsubscribe("gate"), streamId="gate")
        assert heard["type"] == "unsubscribe"


async def test_a_request_gets_its_reply_past_frames_that_nobody_takes() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def send_frames() -> None:
            for number in range(2 * MAX_UNREAD_EVENTS):
                await server.frame(number, f"stream{number}")
            await server.answer(streamId="door", epoch=1)

        nursery.start_soon(send_frames)
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.subscribe("door")).epoch == 1


async def test_a_request_behind_too_many_unread_alerts_ends_the_connection() -> None:
    async with open_pair() as (client, server):
        for number in range(2 * MAX_UNREAD_EVENTS):
            await server.alert(number)
        with pytest.raises(Disconnected, match="64 events lie unread"):
            await client.subscribe("door")
        with pytest.raises(Disconnected, match="4002"):
            [event async for event in client]


async def test_a_request_that_is_cancelled_before_it_begins_changes_nothing() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:
        for number in range(MAX_UNREAD_EVENTS + 1):
            await server.alert(number)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.subscribe("door")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(server.socket.aclose, 1000)
        numbers = [event.alert_id async for event in client if isinstance(event, Alert)]
        assert numbers == list(range(MAX_UNREAD_EVENTS + 1))


async def test_a_close_ends_requests_and_iteration_with_code_reason_and_the_last_error() -> None:
    async with open_pair() as (client, server), trio.open_nursery() as nursery:

        async def close() -> None:
            await server.receive()
            await server.send("error", code="SUPERSEDED", message="a newer one", retryAfter=7)
            await server.socket.aclose(4502, "superseded")

        nursery.start_soon(close)
        with pytest.raises(Disconnected) as caught:
            await client.subscribe("door")
        assert (caught.value.code, caught.value.reason) == (4502, "superseded")
        assert caught.value.error
        assert (caught.value.error.code, caught.value.error.retry_after) == ("SUPERSEDED", 7)
        with pytest.raises(Disconnected, match=r"^SUPERSEDED: a newer one; closed with 4502"):
            [event async for event in client]
        with pytest.raises(Disconnected, match="SUPERSEDED"):
            await client.send_frame(b"picture")


async def test_an_error_from_before_is_not_taken_for_the_reason_of_a_close() -> None:
    async with open_pair() as (client, server):
        await server.send("error", code="NOT_REGISTERED", message="no")
        await server.alert(1)
        await server.socket.aclose(4003, "idle")
        with pytest.raises(Disconnected) as caught:
            [event async for event in client]
        assert (caught.value.code, caught.value.error) == (4003, None)


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        '{"type": "alert"}',
        '{"type": "video-frame", "streamId": "door", "seq": "x"}',
        "[" * 10_000,
        b"\xff\xfe",
    ],
)
async def test_a_server_that_does_not_keep_to_the_protocol_ends_the_connection(
    message: str | bytes,
) -> None:
    async with open_pair() as (client, server):
        await server.socket.send_message(message)
        with pytest.raises(Disconnected, match=r"closed with 1002 .cannot read"):
            await anext(client)


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    async with open_scripted_server() as (socket, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.answer)
        with pytest.raises(KeyError, match="of the script"):
            async with open_client(socket, TOKEN):
                raise KeyError("of the script")


async def test_after_the_client_has_left_its_iteration_is_over() -> None:
    async with open_pair() as (client, _):
        pass
    assert [event async for event in client] == []
    with pytest.raises(Disconnected, match="the client left"):
        await client.subscribe("door")


async def test_no_repr_holds_the_token() -> None:
    async with open_pair() as (client, _):
        assert TOKEN not in repr(client)
