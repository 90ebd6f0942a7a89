"""`alertsAfter` of `subscribe` and `register`: what was missed comes before what is live, once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from relay.alerts.replay import NEXT_PAGE_TIMEOUT
from tests.unit.alerts.test_replay import raise_alerts
from tests.unit.alerts.test_replay_beside_live import live, page, store
from tests.unit.hub.test_bursts import send_at_once
from tests.unit.memory import BOB, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock


async def ask(client: Client, **request: Any) -> list[dict[str, Any]]:
    """All that comes until the replay has ended or was refused, but statuses."""
    await client.send(request)
    heard: list[dict[str, Any]] = []
    while True:
        message = await client.receive()
        if message["type"] != "status":
            heard.append(message)
        if message["type"] == "error" or message.get("code") == "ALERTS_REPLAYED":
            return heard


async def subscribe(client: Client, after: int, **more: Any) -> list[dict[str, Any]]:
    return await ask(
        client,
        type="subscribe",
        streamId="s",
        **{"consumes": ["alert"], "alertsAfter": after, **more},
    )


def ids(heard: list[dict[str, Any]]) -> list[int]:
    return [message["alertId"] for message in heard if message["type"] == "alert"]


async def test_who_comes_back_gets_what_was_missed_behind_the_answer(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 3)
    heard = await subscribe(await relay.login(), 1, id=7)
    assert [message.get("code") for message in heard] == [
        "SUBSCRIBED",
        None,
        None,
        "ALERTS_REPLAYED",
    ]
    assert ids(heard) == [2, 3]
    assert heard[-1]["more"] is False
    assert heard[0]["id"] == heard[-1]["id"] == 7


async def test_an_alert_that_comes_while_the_missed_are_read_comes_once_and_last(
    relay: MemoryRelay,
) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 2)
    viewer = await relay.login()
    relay.alerts.delay = 1
    await viewer.send(
        {"type": "subscribe", "streamId": "s", "consumes": ["alert"], "alertsAfter": 1}
    )
    await viewer.receive_type("status")
    store(relay, 1)
    relay.alerts.catch_up()
    heard = [await viewer.receive() for _ in range(3)]
    assert ids(heard) == [2, 3]
    assert heard[-1]["code"] == "ALERTS_REPLAYED"
    relay.alerts.delay = 0
    assert await live(viewer) == []
    store(relay, 1)
    relay.alerts.catch_up()
    assert await live(viewer) == [4]


async def test_an_alert_that_the_client_has_does_not_come_late(relay: MemoryRelay) -> None:
    await relay.phone("s")
    store(relay, 2)
    viewer = await relay.login()
    assert ids(await subscribe(viewer, 2)) == []
    relay.alerts.catch_up()
    assert await live(viewer) == []


async def test_more_than_a_page_is_asked_for_as_any_replay_is(relay: MemoryRelay) -> None:
    await relay.phone("s")
    store(relay, 120)
    relay.alerts.catch_up()
    viewer = await relay.login()
    heard = await subscribe(viewer, 0)
    assert heard[-1]["more"] is True
    store(relay, 1)
    relay.alerts.catch_up()
    rest, more = await page(viewer, streamId="s", after=ids(heard)[-1])
    assert (ids(heard) + rest, more) == (list(range(1, 122)), False)


async def test_a_phone_that_registers_again_gets_what_it_missed(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 3)
    again = await relay.login()
    heard = await ask(again, type="register", streamId="s", alertsAfter=1)
    assert ids(heard) == [2, 3]
    assert [heard[0]["code"], heard[-1]["code"]] == ["REGISTERED", "ALERTS_REPLAYED"]


async def test_frames_go_on_while_the_missed_are_read(relay: MemoryRelay) -> None:
    phone = await relay.phone("s")
    viewer = await relay.login()
    relay.alerts.delay = 60
    await viewer.send(
        {
            "type": "subscribe",
            "streamId": "s",
            "consumes": ["video-frame", "alert"],
            "alertsAfter": 0,
        }
    )
    await viewer.receive_type("status")
    await phone.send({"type": "video-frame", "data": "AAAA"})
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    await viewer.send({"type": "unsubscribe", "streamId": "s"})
    with trio.fail_after(30):
        while (await viewer.receive()).get("code") != "UNSUBSCRIBED":
            pass


async def test_one_that_consumes_no_alerts_cannot_have_missed_some(relay: MemoryRelay) -> None:
    await relay.phone("s")
    heard = await subscribe(await relay.login(), 0, consumes=["video-frame"])
    assert [message.get("code") for message in heard] == ["SUBSCRIBED", "INVALID_MESSAGE"]
    assert "alertsAfter" in heard[-1]["message"]


async def test_an_unknown_position_leaves_the_subscription_as_it_is(relay: MemoryRelay) -> None:
    await relay.phone("s")
    viewer = await relay.login()
    heard = await subscribe(viewer, 99)
    assert [message.get("code") for message in heard] == ["SUBSCRIBED", "INVALID_MESSAGE"]
    await raise_alerts(relay, 1)
    assert await live(viewer) == [1]


async def test_with_the_store_away_live_alerts_wait_for_another_try(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 3)
    viewer = await relay.login()
    relay.alerts.away = True
    heard = await subscribe(viewer, 1)
    assert [message.get("code") for message in heard] == ["SUBSCRIBED", "STORE_UNAVAILABLE"]
    relay.alerts.away = False
    await raise_alerts(relay, 1)
    assert await live(viewer) == []
    assert await page(viewer, streamId="s", after=1) == ([2, 3, 4], False)
    await raise_alerts(relay, 1)
    assert await live(viewer) == [5]


async def test_nobody_waits_for_ever_for_another_try(relay: MemoryRelay) -> None:
    await relay.phone("s")
    viewer = await relay.login()
    relay.alerts.away = True
    await subscribe(viewer, 0)
    relay.alerts.away = False
    await raise_alerts(relay, 1)
    await trio.sleep(NEXT_PAGE_TIMEOUT - 1)
    assert await live(viewer) == []
    await trio.sleep(2)
    assert await live(viewer) == [1]


async def test_who_unsubscribes_between_two_pages_gets_no_more_and_can_begin_anew(
    relay: MemoryRelay,
) -> None:
    await relay.phone("s")
    store(relay, 120)
    relay.alerts.catch_up()
    viewer = await relay.login()
    assert (await subscribe(viewer, 0))[-1]["more"] is True
    await raise_alerts(relay, 1)
    assert (await viewer.ask({"type": "unsubscribe", "streamId": "s"}))["code"] == "UNSUBSCRIBED"
    await viewer.ask({"type": "subscribe", "streamId": "s", "consumes": ["alert"]})
    await raise_alerts(relay, 1)
    assert await live(viewer) == [122]


async def test_who_unsubscribes_while_a_page_is_read_can_begin_anew(relay: MemoryRelay) -> None:
    await relay.phone("s")
    store(relay, 120)
    relay.alerts.catch_up()
    viewer = await relay.login()
    relay.alerts.delay = 1
    await viewer.send(
        {"type": "subscribe", "streamId": "s", "consumes": ["alert"], "alertsAfter": 0}
    )
    await viewer.receive_type("status")
    assert (await viewer.ask({"type": "unsubscribe", "streamId": "s"}))["code"] == "UNSUBSCRIBED"
    relay.alerts.delay = 0
    await viewer.send({"type": "subscribe", "streamId": "s", "consumes": ["alert"]})
    page_of_before = [await viewer.receive() for _ in range(101)]
    assert ids(page_of_before) == list(range(1, 101))
    assert page_of_before[-1]["more"] is True
    await viewer.receive_type("status")
    await raise_alerts(relay, 1)
    assert await live(viewer) == [121]


async def test_who_unsubscribes_before_a_page_is_read_can_begin_anew(relay: MemoryRelay) -> None:
    await relay.phone("s")
    store(relay, 120)
    relay.alerts.catch_up()
    viewer = await relay.login()
    subscribe = {"type": "subscribe", "streamId": "s", "consumes": ["alert"]}
    unsubscribe = {"type": "unsubscribe", "streamId": "s"}
    await send_at_once(viewer, {**subscribe, "alertsAfter": 0}, unsubscribe, subscribe)
    while (await viewer.receive()).get("code") != "UNSUBSCRIBED":
        pass
    while (await viewer.receive()).get("code") != "SUBSCRIBED":
        pass
    await raise_alerts(relay, 1)
    assert 121 in await live(viewer)


async def test_a_stranger_is_told_nothing_of_what_was_missed(relay: MemoryRelay) -> None:
    await relay.phone("s")
    await raise_alerts(relay, 2)
    heard = await subscribe(await relay.login(BOB), 0)
    assert ids(heard) == []
