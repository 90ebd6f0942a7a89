"""Alerts that a client receives: each once, in order, over losses and long histories."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import Alert
from relay.client.state.event_queue import MAX_UNREAD_ALERTS
from tests.unit.client.scripted_relay import (
    ScriptedRelay,
    alerts_within,
    next_of,
    open_client,
    page,
    replay,
    subscribed,
    unread,
)

pytestmark = pytest.mark.mock_clock


async def test_alerts_go_on_from_the_last_one_seen_each_once_and_in_order(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door", frames=False)
        server = await scripted.login()
        assert page(await replay(server, 3)) == ("alerts-since", None, 1)
        await subscribed(server)
        assert page(await replay(server)) == ("alerts-since", 3, None)
        await server.alert(4)
        alert = await next_of(client, Alert)
        assert (alert.alert_id, alert.replayed) == (4, False)
        await server.lose()

        server = await scripted.login()
        await subscribed(server)
        await server.alert(9)  # live, before the replay has begun
        assert page(await replay(server, 5, 6, more=True)) == ("alerts-since", 4, None)
        assert page(await replay(server, 7, 8, 9)) == ("alerts-since", 6, None)
        await server.alert(10)
        seen = [await next_of(client, Alert) for _ in range(6)]
        assert [each.alert_id for each in seen] == [5, 6, 7, 8, 9, 10]
        assert [each.replayed for each in seen] == [True] * 5 + [False]


async def test_history_comes_first_and_is_marked(scripted: ScriptedRelay) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door", history=2)
        server = await scripted.login()
        assert page(await replay(server, 6, 7)) == ("alerts-since", None, 2)
        await subscribed(server)
        await replay(server)
        await server.alert(8)
        seen = [await next_of(client, Alert) for _ in range(3)]
        assert [(each.alert_id, each.replayed) for each in seen] == [
            (6, True),
            (7, True),
            (8, False),
        ]


async def test_where_the_last_alert_is_no_longer_kept_all_of_late_are_asked_for(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door")
        server = await scripted.login()
        await replay(server, 3)
        await subscribed(server)
        await server.refuse("INVALID_MESSAGE", "after: pruned")
        assert page(await replay(server, 2, 3, 5)) == ("alerts-since", None, 500)
        assert (await next_of(client, Alert)).alert_id == 5


async def test_no_alert_is_missed_before_a_subscription_that_has_to_be_asked_for_again(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.subscribe("door", frames=False)
        server = await scripted.login()
        await replay(server, 3)
        await server.refuse("RATE_LIMITED", "later", retryAfter=30)
        assert page(await replay(server)) == ("alerts-since", 3, None)
        assert (await subscribed(server))["type"] == "subscribe"
        assert page(await replay(server, 4)) == ("alerts-since", 3, None)  # stored meanwhile
        assert (await next_of(client, Alert)).alert_id == 4


async def test_no_alert_is_missed_before_a_registration_that_has_to_be_asked_for_again(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.publish("door", alerts=True)
        server = await scripted.login()
        await replay(server, 3)
        await server.refuse("RATE_LIMITED", "later", retryAfter=30)
        assert page(await replay(server)) == ("alerts-since", 3, None)
        assert (await server.answer(streamId="door", epoch=7))["type"] == "register"
        assert page(await replay(server, 4)) == ("alerts-since", 3, None)
        assert (await next_of(client, Alert)).alert_id == 4


async def test_who_publishes_what_is_being_caught_up_with_misses_no_alert(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await scripted.login()
        mark = await server.receive()
        await server.receive()
        client.publish("door", alerts=True)
        stored = [3]

        async def play() -> None:
            request = mark
            while True:
                if request["type"] == "alerts-since":
                    after, last = request.get("after") or 0, request.get("last")
                    for number in stored[-last:] if last else [n for n in stored if n > after]:
                        await server.alert(number)
                await server.send(
                    "success", id=request["id"], message="", timestamp=1, streamId="door", epoch=7
                )
                if request is mark:
                    stored.append(4)
                    await server.alert(4)
                request = await server.receive()

        nursery.start_soon(play)
        assert (await next_of(client, Alert)).alert_id == 4
        nursery.cancel_scope.cancel()


async def test_alerts_beyond_what_may_lie_unread_stay_in_the_store_and_none_is_lost(
    scripted: ScriptedRelay,
) -> None:
    many = MAX_UNREAD_ALERTS + 300  # and one more, which comes live into the replay
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await scripted.login()
        await replay(server)
        await subscribed(server)
        await replay(server)

        async def play() -> None:
            for number in range(1, many + 1):
                await server.alert(number)
            while True:
                request = await server.receive()
                if request["type"] != "alerts-since":
                    await server.send(
                        "error", id=request["id"], code="INVALID_MESSAGE", message="no"
                    )
                    continue
                after = request["after"]
                await server.alert(many + 1)
                last = min(many + 1, after + min(100, request["limit"]))
                for number in range(after + 1, last + 1):
                    await server.alert(number)
                await server.send("success", id=request["id"], timestamp=1, more=last <= many)

        nursery.start_soon(play)
        await trio.sleep(1)
        assert len(unread(client)) <= MAX_UNREAD_ALERTS
        seen = [(await next_of(client, Alert)).alert_id for _ in range(many + 1)]
        assert seen == list(range(1, many + 2))
        nursery.cancel_scope.cancel()


async def test_who_unsubscribes_amid_a_replay_asks_for_no_more_of_it(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        door = client.subscribe("door", frames=False)
        server = await scripted.login()
        await replay(server, 3)
        await subscribed(server)
        request = await server.receive()
        door.unsubscribe()
        await server.alert(4)
        await server.send("success", id=request["id"], message="", timestamp=1, more=True)
        assert (await server.receive())["streamId"] == "door"  # the end of the subscription
        await server.alert(5)
        await trio.testing.wait_all_tasks_blocked()
        assert (await server.receive())["streamId"] != "door"  # a sign of life, after a while


async def test_alerts_of_a_stream_with_a_made_up_id_go_on_when_there_is_room_again(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client:
        client.publish(alerts=True)
        server = await scripted.login()
        await server.answer(streamId="door")
        for number in range(1, MAX_UNREAD_ALERTS + 50):
            await server.alert(number)
        await trio.sleep(1)
        for _ in range(MAX_UNREAD_ALERTS // 2 + 20):
            await next_of(client, Alert)
        assert (await server.receive())["type"] == "alerts-since"


async def test_an_alert_that_comes_before_it_is_known_where_to_begin_is_told(
    scripted: ScriptedRelay,
) -> None:
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        client.subscribe("door", frames=False)
        server = await scripted.login()
        await server.refuse("STORE_UNAVAILABLE", "away")
        await subscribed(server)
        await server.alert(5)

        async def play() -> None:
            while True:
                request = await server.receive()
                if "last" in request or request.get("after", 0) < 5:
                    await server.alert(5)
                await server.send("success", id=request["id"], timestamp=1, more=False)

        nursery.start_soon(play)
        assert await alerts_within(client, 8) == [5]
        nursery.cancel_scope.cancel()


async def test_much_history_of_many_streams_is_told_whole_to_who_reads_late(
    scripted: ScriptedRelay,
) -> None:
    names, many = [f"s{number}" for number in range(5)], 500
    async with open_client(scripted) as client, trio.open_nursery() as nursery:
        for name in names:
            client.subscribe(name, frames=False, history=many)
        server = await scripted.login()

        async def play() -> None:
            while True:
                request = await server.receive()
                stream, more = request["streamId"], False
                if request["type"] == "alerts-since":
                    first = names.index(stream) * 1000 + 1
                    kept = list(range(first, first + many))
                    if "last" in request:
                        sent = kept[-request["last"] :]
                    else:
                        sent = [each for each in kept if each > request["after"]][
                            : request["limit"]
                        ]
                    for number in sent:
                        await server.alert(number, stream)
                    more = bool(sent) and sent[-1] < kept[-1]
                await server.send(
                    "success", id=request["id"], timestamp=1, streamId=stream, epoch=7, more=more
                )

        nursery.start_soon(play)
        await trio.sleep(5)
        seen = await alerts_within(client, 20)
        assert len(set(seen)) == len(seen) == len(names) * many
        nursery.cancel_scope.cancel()
