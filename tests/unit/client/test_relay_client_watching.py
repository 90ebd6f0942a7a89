"""What a viewer that comes back sees of its subscriptions and of the streams it may watch."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import Frame, Problem, Status, StreamEntry, Streams
from tests.unit.client.scripted_relay import (
    ScriptedRelay,
    never_returns,
    next_of,
    open_client,
    open_door,
    replay,
    subscribed,
    unread,
)

pytestmark = pytest.mark.mock_clock


async def test_subscriptions_are_asked_for_again_on_the_terms_as_they_are_by_then(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        door = client.subscribe("door", alerts=False, max_fps=5)
        gate = client.subscribe("gate", alerts=False, policy="lossless")
        gone = client.subscribe("gone", alerts=False)
        server = await scripted.login()
        first = await subscribed(server)
        assert {
            key: first[key] for key in ("streamId", "consumes", "policy", "maxFps", "window")
        } == {
            "streamId": "door",
            "consumes": ["video-frame"],
            "policy": "latest",
            "maxFps": 5,
            "window": 4,
        }
        assert (await subscribed(server, "gate"))["window"] == 32
        await subscribed(server, "gone")
        door.update(max_fps=None, window=9)
        changed = await subscribed(server)
        assert ("maxFps" in changed, changed["window"]) == (False, 9)
        gone.unsubscribe()
        assert (await server.answer(streamId="gone"))["type"] == "unsubscribe"
        await server.lose()
        server = await scripted.login()
        again = [await subscribed(server, stream) for stream in ("door", "gate")]
        assert [each["streamId"] for each in again] == ["door", "gate"]
        assert again[0]["window"] == 9
        await trio.testing.wait_all_tasks_blocked()
        assert gate.active
        with pytest.raises(ValueError, match="there is a subscription to gate already"):
            client.subscribe("gate")


async def test_a_refused_subscription_is_a_problem_of_its_stream_and_is_gone(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        wrong = client.subscribe("not an id", alerts=False)
        server = await scripted.login()
        await server.refuse("INVALID_MESSAGE", "streamId: no")
        problem = await next_of(client, Problem)
        assert (problem.stream_id, problem.code) == ("not an id", "INVALID_MESSAGE")
        assert not wrong.active
        client.subscribe("door", alerts=False)
        before = trio.current_time()
        await server.refuse("STORE_UNAVAILABLE", "away", retryAfter=5000)
        await subscribed(server)
        assert trio.current_time() == pytest.approx(before + 5)
        assert (await next_of(client, Status)).status == "streaming"


async def test_a_frame_is_acknowledged_when_the_event_after_it_is_asked_for(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await open_door(client, scripted)
        await server.frame(1)
        await server.frame(2)
        first = await next_of(client, Frame)
        assert (first.seq, first.epoch, first.data) == (1, 7, b"picture")
        await never_returns(server.receive)
        assert (await next_of(client, Frame)).seq == 2
        ack = await server.receive()
        assert ack == {"type": "ack", "streamId": "door", "seq": 1, "epoch": 7}


async def test_a_frame_that_was_seen_does_not_come_again_and_gaps_are_counted(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await open_door(client, scripted)
        await server.frame(5)
        assert (await next_of(client, Frame)).missed == 0
        await server.lose()
        server = await scripted.login()
        await subscribed(server)
        for seq in (5, 9):
            await server.frame(seq)
        frame = await next_of(client, Frame)
        assert (frame.seq, frame.missed) == (9, 3)
        await server.send("status", streamId="door", epoch=8, status="streaming", timestamp=1)
        await server.frame(1)
        frame = await next_of(client, Frame)
        assert (frame.seq, frame.epoch, frame.missed) == (1, 8, 0)


async def test_frames_of_an_earlier_subscription_are_not_taken_for_those_of_a_later_one(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door", alerts=False).unsubscribe()
        client.subscribe("door", alerts=False)
        server = await scripted.login()
        # As for the list of streams.
        await server.send("status", streamId="door", epoch=7, status="streaming", timestamp=1)
        await server.frame(1)
        await trio.testing.wait_all_tasks_blocked()
        await subscribed(server)
        await server.frame(2)
        assert (await next_of(client, Frame)).seq == 2


async def test_frames_that_come_while_alerts_are_asked_for_in_addition_are_not_missed(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        door = client.subscribe("door", alerts=False, policy="lossless")
        server = await scripted.login()
        await subscribed(server)
        await server.frame(1)
        await trio.testing.wait_all_tasks_blocked()
        door.update(alerts=True)
        await server.frame(2)
        await trio.testing.wait_all_tasks_blocked()
        await replay(server)
        await subscribed(server)
        await server.frame(3)
        frames = [await next_of(client, Frame) for _ in range(3)]
        assert [(frame.seq, frame.missed) for frame in frames] == [(1, 0), (2, 0), (3, 0)]


async def test_what_is_unread_of_a_lost_connection_makes_room_for_what_is_new(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        server = await open_door(client, scripted)
        await client.ready()
        for seq in range(1, 9):
            await server.frame(seq)
        await trio.testing.wait_all_tasks_blocked()
        assert [f.seq for f in unread(client) if isinstance(f, Frame)] == [5, 6, 7, 8]
        await server.lose()
        server = await scripted.login()
        await subscribed(server)
        await server.frame(20)
        assert (await next_of(client, Frame)).seq == 20


async def test_streams_that_may_be_seen_are_listed_and_each_change_is_told(
    scripted: ScriptedRelay,
) -> None:
    async def changed(**fields: object) -> dict[str, str]:
        if fields:
            await server.send("status", timestamp=1, epoch=1, **fields)
        entries = (await next_of(client, Streams)).streams
        return {entry.stream_id: entry.status for entry in entries}

    async with open_client(scripted) as client:
        client.watch_streams()
        client.watch_streams()
        for _ in range(2):  # also after a loss
            server = await scripted.login()
            door = {"streamId": "door", "status": "online", "metadata": {"codec": "jpeg"}}
            request = await server.answer(streams=[door])
            assert request["type"] == "streams"
            assert await changed() == {"door": "online"}
            await server.send("status", timestamp=1, epoch=0, streamId="gate", status="offline")
            await server.send("status", timestamp=1, epoch=1, streamId="door", status="streaming")
            entries = (await next_of(client, Streams)).streams
            assert entries == (StreamEntry("door", "streaming", {"codec": "jpeg"}),)
            both = {"door": "streaming", "gate": "online"}
            assert await changed(streamId="gate", status="online") == both
            assert await changed(streamId="door", status="offline") == {"gate": "online"}
            await server.lose()


async def test_a_list_of_streams_that_comes_in_pages_is_told_as_a_whole(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.watch_streams()
        server = await scripted.login()
        first = {"streamId": "a", "status": "online", "metadata": {"page": 1}}
        assert "after" not in await server.answer(streams=[first], more=True)
        request = await server.receive()
        assert (request["type"], request["after"]) == ("streams", "a")
        for stream_id in ("b", "c"):  # b is in the next page, too
            await server.send("status", timestamp=1, epoch=1, streamId=stream_id, status="online")
        await server.send("status", timestamp=1, epoch=1, streamId="a", status="streaming")
        error = {"code": "RATE_LIMITED", "message": "too many", "retryAfter": 50, "timestamp": 1}
        await server.send("error", id=request["id"], **error)
        second = {"streamId": "b", "status": "online", "metadata": {"page": 2}}
        assert (await server.answer(streams=[second]))["after"] == "a"
        entries = (await next_of(client, Streams)).streams
        assert {each.stream_id: (each.status, each.metadata) for each in entries} == {
            "a": ("streaming", {"page": 1}),
            "b": ("online", {"page": 2}),
            "c": ("online", None),
        }


async def test_a_subscription_whose_new_terms_are_refused_is_gone_on_the_relay_too(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        subscription = client.subscribe("door", alerts=False)
        server = await scripted.login()
        await subscribed(server)
        await next_of(client, Status)
        subscription.update(max_fps=5000)
        await server.refuse("INVALID_MESSAGE", "too many")
        assert (await next_of(client, Problem)).stream_id == "door"
        assert not subscription.active
        request = await server.receive()
        assert (request["type"], request["streamId"]) == ("unsubscribe", "door")


async def test_a_subscription_made_anew_gets_no_frame_of_the_one_before(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        before = client.subscribe("door", alerts=False)
        server = await scripted.login()
        await server.answer(streamId="door", epoch=7)
        await server.frame(1)
        await next_of(client, Frame)
        before.unsubscribe()
        client.subscribe("door", alerts=False)
        await server.frame(2)
        with trio.move_on_after(0.1):
            pytest.fail(f"{await next_of(client, Frame)} came")
        while (request := await server.receive())["type"] != "subscribe":
            pass
        await server.send(
            "success", id=request["id"], message="", streamId="door", epoch=7, timestamp=1
        )
        await server.frame(3)
        assert (await next_of(client, Frame)).seq == 3


async def test_no_delta_is_handed_on_without_the_frame_that_it_builds_on(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        door = client.subscribe("door", alerts=False, window=4)
        server = await scripted.login()
        await subscribed(server)
        for seq in range(1, 5):
            await server.frame(seq, keyframe=seq == 1)
        await trio.sleep(1)
        door.update(window=2)
        await server.answer(streamId="door", epoch=7)
        await server.frame(5, keyframe=False)
        await trio.sleep(1)
        waiting = [event.seq for event in unread(client) if isinstance(event, Frame)]
        assert waiting == [1, 2, 3, 4]
        await server.frame(6, keyframe=False)  # builds on the one that was skipped
        await server.frame(7, keyframe=True)
        await trio.sleep(1)
        waiting = [event.seq for event in unread(client) if isinstance(event, Frame)]
        assert waiting == [7]


@pytest.mark.parametrize("streams", [5, None, [5]])
async def test_a_list_of_streams_that_is_none_ends_the_connection_at_the_most(
    scripted: ScriptedRelay, streams: object
) -> None:
    async with open_client(scripted) as client:
        client.watch_streams()
        server = await scripted.login()
        await server.answer(streams=streams)
        await scripted.login()
        await client.ready()
