"""The history of alerts and the list of streams."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.memory import ANN, BOB, SENTRY, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


async def raise_alerts(relay: MemoryRelay, count: int, stream_id: str = "s") -> None:
    sentry = await relay.login(SENTRY)
    for index in range(count):
        alert = {"streamId": stream_id, "severity": "low", "message": f"{stream_id} {index}"}
        reply = await sentry.ask({"type": "alert", **alert})
        assert reply["code"] == "ALERT_ACCEPTED"


async def replay(client: Client, **request: Any) -> tuple[list[str], dict[str, Any]]:
    """The messages of the alerts that come, and the reply that ends them."""
    await client.send({"type": "alerts-since", **request})
    messages: list[str] = []
    while (message := await client.receive())["type"] != "success":
        if message["type"] == "error":
            return messages, message
        if message["type"] == "alert":
            messages.append(message["message"])
    return messages, message


async def test_alerts_come_in_order_and_then_the_reply(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 3)
    messages, reply = await replay(await relay.login(), streamId="s", id=4)
    assert messages == ["s 0", "s 1", "s 2"]
    assert (reply["code"], reply["id"], reply["more"]) == ("ALERTS_REPLAYED", 4, False)


async def test_a_page_at_a_time_goes_on_from_the_last_one(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 5)
    client = await relay.login()
    seen: list[str] = []
    after: dict[str, int] = {}
    while True:
        await client.send({"type": "alerts-since", "streamId": "s", "limit": 2, **after})
        while (message := await client.receive())["type"] == "alert":
            seen.append(message["message"])
            after = {"after": message["alertId"]}
        if not message["more"]:
            break
    assert seen == [f"s {index}" for index in range(5)]


async def test_the_last_few_can_be_asked_for(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 5)
    assert (await replay(await relay.login(), streamId="s", last=2))[0] == ["s 3", "s 4"]


async def test_without_a_stream_all_that_the_user_may_see_is_replayed(relay: MemoryRelay) -> None:
    await relay.phone("s"), await relay.phone("t"), await relay.phone("bobs", BOB)
    for stream_id in ("s", "bobs", "t"):
        await raise_alerts(relay, 1, stream_id)
    assert (await replay(await relay.login(ANN)))[0] == ["s 0", "t 0"]
    assert (await replay(await relay.login(BOB)))[0] == ["bobs 0"]
    assert (await replay(await relay.login(BOB), streamId="s"))[0] == []


async def test_an_unknown_position_is_refused(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 1)
    _, reply = await replay(await relay.login(), streamId="s", after=99)
    assert reply["code"] == "INVALID_MESSAGE"
    assert "after" in reply["message"]
    _, reply = await replay(await relay.login(BOB), after=1)
    assert reply["code"] == "INVALID_MESSAGE"


async def test_live_alerts_wait_for_the_replay_and_none_comes_twice(relay: MemoryRelay) -> None:
    await relay.phone("s")
    viewer = await relay.viewer("s")
    await raise_alerts(relay, 4)
    for _ in range(4):
        await viewer.receive_type("alert")
    relay.alerts.delay = 5
    await viewer.send({"type": "alerts-since", "streamId": "s", "limit": 3})
    await trio.sleep(1)
    await raise_alerts(relay, 2)  # while the first page is read
    seen = [(await viewer.receive())["message"] for _ in range(3)]
    reply = await viewer.receive()
    assert reply["more"] is True
    await raise_alerts(relay, 1)  # between the pages
    await viewer.send({"type": "alerts-since", "streamId": "s", "after": 3})
    await trio.sleep(1)
    await raise_alerts(relay, 1)  # while the last page is read
    while (message := await viewer.receive())["type"] == "alert":
        seen.append(message["message"])
    assert message["more"] is False
    relay.alerts.delay = 0
    await raise_alerts(relay, 1)
    seen.append((await viewer.receive())["message"])
    assert len(seen) == 9
    assert [alert.message for alert in relay.alerts.stored] == seen


async def test_live_alerts_of_other_streams_do_not_wait(relay: MemoryRelay) -> None:
    await relay.phone("s"), await relay.phone("t")
    viewer = await relay.viewer("s")
    await viewer.ask({"type": "subscribe", "streamId": "t", "consumes": ["alert"]})
    relay.alerts.delay = 5
    await viewer.send({"type": "alerts-since", "streamId": "s"})
    await trio.sleep(1)
    await raise_alerts(relay, 1, "t")
    assert (await viewer.receive_type("alert"))["message"] == "t 0"
    assert (await viewer.receive_type("success"))["code"] == "ALERTS_REPLAYED"


async def test_a_replay_with_the_store_away_says_so_and_live_alerts_go_on(
    relay: MemoryRelay,
) -> None:
    await relay.phone("s")
    viewer = await relay.viewer("s")
    relay.alerts.away = True
    _, reply = await replay(viewer, streamId="s")
    assert reply["code"] == "STORE_UNAVAILABLE"
    relay.alerts.away = False
    await raise_alerts(relay, 1)
    assert (await viewer.receive_type("alert"))["message"] == "s 0"


async def test_streams_lists_what_may_be_seen_and_then_each_change(relay: MemoryRelay) -> None:
    phone = await relay.phone("s")
    await relay.phone("bobs", BOB)
    client = await relay.login(ANN)
    reply = await client.ask({"type": "streams", "id": 1})
    assert (reply["code"], reply["id"]) == ("STREAMS", 1)
    assert reply["streams"] == [{"streamId": "s", "status": "online"}]
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await client.receive())["status"] == "streaming"
    other = await relay.login(ANN)
    await other.ask({"type": "register", "streamId": "t", "metadata": {"a": 1}})
    status = await client.receive()
    assert (status["streamId"], status["status"]) == ("t", "online")
    phone.link.close()
    status = await client.receive()
    assert (status["streamId"], status["status"]) == ("s", "offline")
    reply = await client.ask({"type": "streams"})
    assert reply["streams"] == [{"streamId": "t", "status": "online", "metadata": {"a": 1}}]


async def test_who_watches_a_stream_is_told_its_status_once(relay: MemoryRelay) -> None:
    phone = await relay.phone("s")
    viewer = await relay.viewer("s")
    await viewer.ask({"type": "streams"})
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive())["type"] == "status"
    assert (await viewer.receive())["type"] == "video-frame"


async def test_a_service_lists_what_its_scope_covers(relay: MemoryRelay) -> None:
    await relay.phone("s"), await relay.phone("bobs", BOB)
    sentry = await relay.login(SENTRY)
    reply = await sentry.ask({"type": "streams"})
    assert [entry["streamId"] for entry in reply["streams"]] == ["bobs", "s"]
