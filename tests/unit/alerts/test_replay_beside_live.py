"""Replays of alerts while others come: a dispatch that lags, pages that are never asked for,
replays of the same streams at once, and more than a connection can take."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from relay.alerts.replay import (
    MAX_HELD_BYTES,
    MAX_HELD_LIVE_ALERTS,
    MAX_PAGE_ALERTS,
    NEXT_PAGE_TIMEOUT,
)
from relay.model.alerts.alert import StoredAlert
from tests.unit.alerts.test_replay import raise_alerts
from tests.unit.memory import BOB, SENTRY, Client, Closed, MemoryRelay

pytestmark = pytest.mark.mock_clock

LARGE = {"a": "x" * 60_000}


def store(relay: MemoryRelay, count: int, stream_id: str = "s", *, large: bool = False) -> None:
    """Alerts as the table has them, which nobody has been told of."""
    first = len(relay.alerts.stored) + 1
    for alert_id in range(first, first + count):
        metadata = LARGE if large else None
        alert = StoredAlert(alert_id, stream_id, "ann", "service:x", "low", "m", 0, metadata)
        relay.alerts.stored.append(alert)


async def page(client: Client, **request: Any) -> tuple[list[int], bool]:
    """The ids of the alerts that come before the reply, and whether there are more."""
    await client.send({"type": "alerts-since", **request})
    ids: list[int] = []
    while (message := await client.receive())["type"] != "success":
        assert message["type"] == "alert", message
        ids.append(message["alertId"])
    return ids, message["more"]


async def live(client: Client) -> list[int]:
    """The ids of the alerts that have come."""
    await trio.testing.wait_all_tasks_blocked()
    await client.send({"type": "unsubscribe", "streamId": "unheard-of"})
    ids: list[int] = []
    while (message := await client.receive())["type"] != "error":
        if message["type"] == "alert":
            ids.append(message["alertId"])
    return ids


async def watch(relay: MemoryRelay, *stream_ids: str) -> Client:
    viewer = await relay.login()
    for stream_id in stream_ids:
        await relay.phone(stream_id)
        await viewer.ask({"type": "subscribe", "streamId": stream_id, "consumes": ["alert"]})
        await viewer.receive_type("status")
    return viewer


# -- a dispatch that lags behind


async def test_an_alert_that_was_replayed_before_its_dispatch_comes_once(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s")
    store(relay, 2)
    assert await page(viewer, streamId="s") == ([1, 2], False)
    store(relay, 1)
    relay.alerts.catch_up()
    assert await live(viewer) == [3]


async def test_an_alert_before_an_empty_page_does_not_come_behind_it(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s")
    store(relay, 1)
    assert await page(viewer, streamId="s") == ([1], False)
    relay.alerts.delay = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page, viewer)
        await trio.sleep(0.5)
        relay.alerts.catch_up()
    assert await live(viewer) == []
    assert await page(viewer, streamId="s", after=1) == ([], False)
    store(relay, 1)
    relay.alerts.catch_up()
    assert await live(viewer) == [2]


async def test_a_replay_of_one_stream_silences_no_late_alert_of_another(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s", "t")
    store(relay, 1, "t")
    store(relay, 1, "s")
    assert await page(viewer, streamId="s") == ([2], False)
    relay.alerts.catch_up()
    assert await live(viewer) == [1]


async def test_a_replay_of_everything_counts_for_each_stream(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s", "t")
    store(relay, 2, "s")
    store(relay, 2, "t")
    assert await page(viewer) == ([1, 2, 3, 4], False)
    store(relay, 1, "s")
    store(relay, 1, "t")
    relay.alerts.catch_up()
    assert await live(viewer) == [5, 6]


async def test_many_replays_are_not_remembered_for_ever(relay: MemoryRelay) -> None:
    viewer = await watch(relay)
    for number in range(1200):
        store(relay, 1, f"s{number}")
        await page(viewer, streamId=f"s{number}")
    session = relay.connections[-1]._session
    assert session is not None
    assert len(session._participant.replays._positions) == 1000


# -- pages that nobody asks for


async def test_a_replay_that_is_not_continued_holds_live_alerts_back_for_a_while_only(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s")
    store(relay, 3)
    relay.alerts.catch_up()
    await live(viewer)
    assert await page(viewer, streamId="s", limit=1) == ([1], True)
    await raise_alerts(relay, 2)
    await trio.sleep(NEXT_PAGE_TIMEOUT - 1)
    assert await live(viewer) == []
    await trio.sleep(2)
    assert await live(viewer) == [4, 5]
    await raise_alerts(relay, 1)
    assert await live(viewer) == [6]


async def test_each_page_gives_time_for_the_next(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s")
    await raise_alerts(relay, 4)
    await live(viewer)
    for after in range(3):
        assert await page(viewer, streamId="s", after=after, limit=1) == ([after + 1], True)
        await trio.sleep(NEXT_PAGE_TIMEOUT - 1)
    await raise_alerts(relay, 1)
    assert await live(viewer) == []
    assert await page(viewer, streamId="s", after=3) == ([4, 5], False)
    assert await live(viewer) == []


async def test_live_alerts_flow_before_too_many_wait_for_a_page_nobody_asks_for(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s")
    await raise_alerts(relay, 2)
    await live(viewer)
    assert await page(viewer, streamId="s", limit=1) == ([1], True)
    await raise_alerts(relay, MAX_HELD_LIVE_ALERTS)
    assert await live(viewer) == []
    await raise_alerts(relay, 2)
    assert await live(viewer) == list(range(3, MAX_HELD_LIVE_ALERTS + 5))


async def test_what_comes_too_fast_for_a_page_comes_with_the_next(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s")
    store(relay, 2)
    relay.alerts.catch_up()
    await live(viewer)
    relay.alerts.delay = 5
    await viewer.send({"type": "alerts-since", "streamId": "s"})
    await trio.sleep(1)
    store(relay, MAX_HELD_LIVE_ALERTS + 10)
    relay.alerts.catch_up()
    await trio.sleep(5)
    ids = [(await viewer.receive_type("alert"))["alertId"]]
    while (message := await viewer.receive())["type"] == "alert":
        ids.append(message["alertId"])
    assert message["more"] is True
    relay.alerts.delay = 0
    while message["more"]:
        more, message["more"] = await page(viewer, streamId="s", after=ids[-1])
        ids += more
    assert ids == list(range(1, MAX_HELD_LIVE_ALERTS + 13))
    await raise_alerts(relay, 1)
    assert await live(viewer) == [MAX_HELD_LIVE_ALERTS + 13]


async def test_a_page_that_the_store_does_not_give_may_be_asked_for_again(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s")
    await raise_alerts(relay, 3)
    await live(viewer)
    assert await page(viewer, streamId="s", limit=2) == ([1, 2], True)
    relay.alerts.away = True
    reply = await viewer.ask({"type": "alerts-since", "streamId": "s", "after": 2})
    assert reply["code"] == "STORE_UNAVAILABLE"
    relay.alerts.away = False
    await raise_alerts(relay, 1)
    assert await page(viewer, streamId="s", after=2) == ([3, 4], False)
    assert await live(viewer) == []


# -- replays of the same streams at once


async def test_replays_that_overlap_keep_the_order_and_double_nothing_live(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s", "t")
    await raise_alerts(relay, 3, "s")
    await live(viewer)
    assert await page(viewer, limit=2) == ([1, 2], True)
    assert await page(viewer, streamId="s") == ([1, 2, 3], False)
    await raise_alerts(relay, 1, "s")
    await raise_alerts(relay, 1, "t")
    assert await live(viewer) == []  # for the replay of everything is not through
    assert await page(viewer, after=2) == ([3, 4, 5], False)
    assert await live(viewer) == []
    await raise_alerts(relay, 1, "s")
    assert await live(viewer) == [6]


async def test_a_replay_of_everything_that_ends_leaves_that_of_one_stream_open(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s", "t")
    await raise_alerts(relay, 3, "s")
    await live(viewer)
    assert await page(viewer, streamId="s", limit=1) == ([1], True)
    assert await page(viewer) == ([1, 2, 3], False)
    await raise_alerts(relay, 1, "t")
    await raise_alerts(relay, 1, "s")
    assert await live(viewer) == [4]
    assert await page(viewer, streamId="s", after=1) == ([2, 3, 5], False)
    assert await live(viewer) == []


# -- more than a connection can take


async def test_a_page_of_large_alerts_is_cut_and_its_reader_goes_on(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s")
    store(relay, 100, large=True)
    seen, more = await page(viewer, streamId="s")
    assert more
    assert 10 < len(seen) < 20
    while more:
        ids, more = await page(viewer, streamId="s", after=seen[-1])
        seen += ids
    assert seen == list(range(1, 101))


@pytest.mark.parametrize("request_", [{"limit": 1000}, {"last": 1000}])
async def test_a_page_has_a_few_hundred_alerts_at_most(
    relay: MemoryRelay, request_: dict[str, int]
) -> None:
    viewer = await watch(relay, "s")
    store(relay, 1100)
    ids, more = await page(viewer, streamId="s", **request_)
    assert (len(ids), more) == (MAX_PAGE_ALERTS, True)
    first = 101 if "last" in request_ else 1
    assert ids == list(range(first, first + MAX_PAGE_ALERTS))


async def test_a_full_page_and_all_that_waited_fit_a_connection_that_reads_late(
    relay: MemoryRelay,
) -> None:
    viewer = await watch(relay, "s")
    relay.alerts._position = MAX_PAGE_ALERTS
    store(relay, MAX_PAGE_ALERTS)
    relay.alerts.delay = 5
    await viewer.send({"type": "alerts-since", "streamId": "s", "limit": MAX_PAGE_ALERTS})
    await trio.sleep(1)
    last_read = len(relay.alerts.stored)
    relay.alerts.delay = 0
    store(relay, MAX_HELD_LIVE_ALERTS - 1, large=False)
    relay.alerts.catch_up()
    await trio.sleep(10)
    assert relay.connections[0].peer.ending is None
    ids = [(await viewer.receive_type("alert"))["alertId"] for _ in range(last_read)]
    assert ids == list(range(1, last_read + 1))


async def test_large_alerts_that_wait_are_bounded_in_bytes(relay: MemoryRelay) -> None:
    viewer = await watch(relay, "s")
    store(relay, 2)
    relay.alerts.catch_up()
    await live(viewer)
    assert await page(viewer, streamId="s", limit=1) == ([1], True)
    fitting = MAX_HELD_BYTES // 60_200
    store(relay, fitting, large=True)
    relay.alerts.catch_up()
    assert await live(viewer) == []
    store(relay, 1, large=True)
    relay.alerts.catch_up()
    assert await live(viewer) == list(range(3, fitting + 4))


async def test_nothing_follows_a_message_that_could_not_be_queued(relay: MemoryRelay) -> None:
    deaf = await relay.viewer(capacity=1024)
    await relay.phone()
    sentry = await relay.login(SENTRY)
    alert = {"type": "alert", "streamId": "front-door", "severity": "low", "message": "m"}
    for number in range(100):
        await sentry.ask({**alert, "metadata": LARGE if number < 90 else {}})
    ids = []

    async def hear() -> None:
        while True:
            message = await deaf.receive()
            if message["type"] == "alert":
                ids.append(message["alertId"])

    with pytest.raises(Closed, match="4002"):
        await hear()
    assert ids == list(range(1, len(ids) + 1))


async def test_a_stranger_is_told_nothing_by_replays(relay: MemoryRelay) -> None:
    await watch(relay, "s")
    store(relay, 3)
    assert await page(await relay.login(BOB), streamId="s") == ([], False)
