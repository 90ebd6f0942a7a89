"""A phone that comes back with its stream, and skips frames that the relay cannot take."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import (
    ClientClosed,
    Demand,
    KeyframeWanted,
    Problem,
    ReconnectPolicy,
    Registered,
    ServerError,
)
from tests.unit.client.scripted_relay import (
    ScriptedRelay,
    demand,
    never_returns,
    next_of,
    open_client,
    registered,
)

pytestmark = pytest.mark.mock_clock


async def test_a_stream_whose_id_the_relay_made_keeps_it_over_a_reconnect(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish(metadata={"codec": "jpeg"})
        server = await scripted.login()
        request = await registered(server, "stream_abc")
        assert "streamId" not in request
        assert (request["consumes"], request["metadata"]) == ([], {"codec": "jpeg"})
        assert (await next_of(client, Registered)).stream_id == phone.stream_id == "stream_abc"
        await server.lose()
        server = await scripted.login()
        assert (await registered(server, "stream_abc"))["streamId"] == "stream_abc"
        with pytest.raises(ValueError, match="publishes one stream"):
            client.publish()


async def test_a_register_that_came_too_late_ends_the_client_without_a_close(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.publish("door")
        server = await scripted.login()
        await server.refuse("SUPERSEDED", "a newer one has it")
        with pytest.raises(ClientClosed, match="SUPERSEDED"):
            await next_of(client, int)


async def test_a_phone_hears_when_somebody_watches_and_when_nobody_does(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await registered(server)
        await demand(server, 0)
        await never_returns(phone.wanted)
        await demand(server, 1)
        await phone.wanted()
        assert await next_of(client, Demand) == Demand("door", 1)
        await demand(server, 0)
        assert await next_of(client, Demand) == Demand("door", 0)


async def test_viewers_that_were_there_before_a_loss_are_not_waited_on(
    scripted: ScriptedRelay,
) -> None:
    watched = {"streamId": "door", "epoch": 7, "status": "streaming", "timestamp": 1}
    async with open_client(scripted) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await server.answer(streamId="door")
        await server.send("status", **watched, consumers=1)
        await next_of(client, Demand)
        await server.lose()
        server = await scripted.login()
        await server.answer(streamId="door")
        await phone.ready()
        await never_returns(phone.wanted, 3)
        await server.send("status", **watched, consumers=1)
        await phone.wanted()


async def test_pictures_are_planned_now_and_then_where_that_is_wanted_while_nobody_watches(
    scripted: ScriptedRelay,
) -> None:
    status = {"streamId": "door", "epoch": 7, "status": "online", "timestamp": 1}
    async with open_client(scripted) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await server.answer(streamId="door")
        await server.send("status", **status, consumers=0, standby=0.5)
        await phone.wanted()
        planned = []
        for _ in range(10):
            planned.append(phone.next(fps=10, width=640) is not None)
            await trio.sleep(0.5)
        assert planned == [True, False, False, False] * 2 + [True, False]
        await server.send("status", **status, consumers=1)
        await next_of(client, Demand)
        assert phone.next(fps=10, width=640) is not None
        assert phone.next(fps=10, width=640) is not None
        await server.send("status", **status, consumers=0)
        await trio.testing.wait_all_tasks_blocked()
        assert phone.next(fps=10, width=640) is None


async def test_a_frame_is_skipped_and_not_queued_while_those_before_are_under_way(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted, policy=ReconnectPolicy(max_buffered_bytes=100_000)) as client:
        phone = client.publish("door")
        assert not phone.send_frame(b"too early")
        server = await scripted.login()
        await registered(server)
        await next_of(client, Registered)
        outcomes = []
        for _ in range(50):
            outcomes.append(phone.send_frame(bytes(30_000)))
            await trio.testing.wait_all_tasks_blocked()
        assert outcomes[0]
        assert 2 <= phone.sent <= 5
        assert (phone.sent + phone.skipped, phone.skipped) == (51, outcomes.count(False) + 1)
        while (question := await server.receive())["type"] == "video-frame":
            pass
        await server.send("error", id=question["id"], code="INVALID_MESSAGE", message="no")
        await trio.testing.wait_all_tasks_blocked()
        assert phone.send_frame(b"there is room again")


async def test_what_a_lost_connection_did_not_answer_for_does_not_count_on_the_next(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted, policy=ReconnectPolicy(max_buffered_bytes=100_000)) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await registered(server)
        await phone.ready()
        assert phone.send_frame(bytes(70_000))
        await server.lose()
        server = await scripted.login()
        await registered(server)
        await phone.ready()
        for _ in range(4):
            assert phone.send_frame(bytes(70_000))
            while (question := await server.receive())["type"] == "video-frame":
                pass
            await server.send("error", id=question["id"], code="INVALID_MESSAGE", message="no")
            await trio.testing.wait_all_tasks_blocked()


async def test_a_delta_frame_is_not_sent_after_one_that_was_skipped(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door")
        assert not phone.send_frame(b"k", keyframe=True)
        server = await scripted.login()
        await registered(server)
        await next_of(client, Registered)
        assert not phone.send_frame(b"d", keyframe=False)
        assert phone.send_frame(b"k", keyframe=True)
        assert phone.send_frame(b"d", keyframe=False)


async def test_a_phone_is_told_that_a_keyframe_is_wanted_until_it_has_sent_one(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await registered(server)
        await phone.ready()
        assert phone.needs_keyframe, "nothing was sent on this connection"
        assert phone.send_frame(b"k", keyframe=True)
        assert not phone.needs_keyframe
        await server.send("notice", code="KEYFRAME_WANTED", streamId="other", timestamp=1)
        await server.send("notice", code="KEYFRAME_WANTED", streamId="door", timestamp=1)
        assert (await next_of(client, KeyframeWanted)).stream_id == "door"
        assert phone.send_frame(b"d", keyframe=False)
        assert phone.needs_keyframe
        assert phone.send_frame(b"k", keyframe=True)
        assert not phone.needs_keyframe


async def test_a_discardable_frame_queues_for_a_moment_or_is_skipped_and_breaks_no_other(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("door")
        server = await scripted.login()
        await server.answer(streamId="door", window=4)
        await phone.ready()
        assert phone.send_frame(bytes(10_000), keyframe=True)
        question = await server.receive()
        await server.send("success", id=question["id"], code="UNSUBSCRIBED", message="no")
        await trio.sleep(1)
        await server.send("received", streamId="door", frames=1)
        await trio.testing.wait_all_tasks_blocked()
        assert phone.bandwidth is not None
        assert phone.bandwidth < 20_000
        assert phone.send_frame(bytes(100), keyframe=False)
        assert phone.send_frame(b"d", keyframe=False, discardable=True), "it may queue for 50 ms"
        sent = [phone.send_frame(bytes(1000), keyframe=False) for _ in range(3)]
        assert all(sent), "frames that others build on may queue for a while"
        assert not phone.send_frame(b"d", keyframe=False, discardable=True)
        assert not phone.needs_keyframe
        assert phone.send_frame(b"d", keyframe=False)
        assert not phone.send_frame(b"a picture that stands alone")
        assert phone.needs_keyframe


async def test_a_stream_that_is_taken_is_a_problem_and_stopping_one_makes_room(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        phone = client.publish("taken")
        server = await scripted.login()
        await server.refuse("UNAUTHORIZED", "taken")
        assert (await next_of(client, Problem)).stream_id == "taken"
        assert not phone.active
        with pytest.raises(ServerError, match="UNAUTHORIZED"):
            await phone.wanted()
        phone = client.publish("door")
        await registered(server)
        await next_of(client, Registered)
        phone.stop()
        assert not phone.send_frame(b"x")
        assert await server.close_code() == 1000
        await scripted.login()
        assert client.publication is None


@pytest.mark.parametrize("wrong", [object(), 1 << 70])
async def test_what_cannot_be_sent_is_refused_at_once_and_holds_nothing_else_up(
    scripted: ScriptedRelay, wrong: object
) -> None:
    async with open_client(scripted) as client:
        with pytest.raises(ValueError, match="alert: "):
            await client.alert("door", "m", metadata={"wrong": wrong})
        with pytest.raises(ValueError, match="register: "):
            client.publish("door", metadata={"wrong": wrong})
        client.publish("door")
        server = await scripted.login()
        assert (await server.receive())["type"] == "register"
