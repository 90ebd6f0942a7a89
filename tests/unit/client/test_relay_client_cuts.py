"""A client that comes back, on a link that dies at every step of its conversation with a relay."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio

from relay.client import ReconnectPolicy, RelayClient
from relay.client.relay_client import keep_client
from tests.unit.cut_links import HOW, Cut, Links, Way, cuts
from tests.unit.event_log import EventLog
from tests.unit.memory import ANN, SENTRY, MemoryRelay

pytestmark = pytest.mark.mock_clock

STREAM = "front-door"
PERIOD = 0.04
"""Seconds between frames, and between alerts."""
STEP = int(os.environ.get("STEP", "123"))
"""How far apart the cuts are; STEP=1 tries each byte."""
STEPS = pytest.mark.parametrize("step", [STEP, pytest.param(7, marks=pytest.mark.slow)])
HASTY = ReconnectPolicy(
    silence_timeout=0.2, ping_timeout=0.2, open_timeout=0.5, min_backoff=0.02, max_backoff=0.2
)


@asynccontextmanager
async def open_client(links: Links, token: str = ANN) -> AsyncIterator[RelayClient]:
    async def give(_request: object) -> str:
        return token

    async with keep_client(links.dial, give, HASTY) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(300):  # by the mock clock
        while not condition():  # noqa: ASYNC110 (as a user would look)
            await trio.sleep(0.01)


@asynccontextmanager
async def going_on(relay: MemoryRelay) -> AsyncIterator[None]:
    """A stream that never stops, with numbered frames and alerts; beside the links that die."""

    async def film() -> None:
        phone = await relay.phone(STREAM)
        nursery.start_soon(phone.closing)  # it hears every alert
        for number in count(1):
            data = base64.b64encode(b"%d" % number).decode()
            await phone.send({"type": "video-frame", "data": data})
            await trio.sleep(PERIOD)

    async def warn() -> None:
        service = await relay.login(SENTRY)
        for number in count(1):
            alert = {"type": "alert", "streamId": STREAM, "severity": "low"}
            reply = await service.ask({**alert, "message": str(number)})
            assert reply["type"] == "success", reply
            await trio.sleep(PERIOD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(film)
        await trio.sleep(PERIOD)
        nursery.start_soon(warn)
        yield
        nursery.cancel_scope.cancel()


async def view(relay: MemoryRelay, cut: Cut) -> None:
    links = Links(relay, lambda number: None if number else cut, plain=cut.at % 3 == 0)
    log = EventLog()
    async with open_client(links) as client, trio.open_nursery() as nursery:
        client.subscribe(STREAM)
        nursery.start_soon(log.record, client)
        await until(lambda: links.cuts == 1 and len(links.opened) > 1)
        frames, alerts = log.frames, len(log.alerts)
        await until(lambda: log.frames > frames + 2 and len(log.alerts) > alerts + 1)
        nursery.cancel_scope.cancel()


async def publish(relay: MemoryRelay, numbers: Iterator[int], seen: list[int], cut: Cut) -> None:
    links = Links(relay, lambda number: None if number else cut, plain=cut.at % 3 == 0)
    before = len(relay.alerts.stored)
    async with open_client(links) as client, trio.open_nursery() as nursery:
        phone = client.publish("back-door")

        async def film() -> None:
            while True:
                phone.send_frame(b"%d" % next(numbers))
                await trio.sleep(PERIOD)

        nursery.start_soon(film)
        await client.ready()
        for message in "abc":
            nursery.start_soon(client.alert, "back-door", message)
        await until(lambda: links.cuts == 1 and len(links.opened) > 1)
        await client.alert("back-door", "d")
        frames = len(seen)
        await until(lambda: len(seen) > frames + 2 and len(relay.alerts.stored) == before + 4)
        nursery.cancel_scope.cancel()
    assert sorted(alert.message for alert in relay.alerts.stored[before:]) == list("abcd")


@STEPS
async def test_a_viewer_cut_anywhere_has_each_alert_once_and_goes_on_with_new_frames(
    relay: MemoryRelay, step: int
) -> None:
    async with going_on(relay):
        for cut in cuts(step):
            await view(relay, cut)


@STEPS
async def test_a_phone_cut_anywhere_has_each_alert_stored_once_and_sends_no_frame_twice(
    relay: MemoryRelay, step: int
) -> None:
    seen: list[int] = []

    async def watch() -> None:
        viewer = await relay.viewer("back-door")
        while True:
            frame = await viewer.receive_type("video-frame")
            seen.append(int(base64.b64decode(frame["data"])))
            assert seen == sorted(set(seen))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        numbers = count(1)
        for cut in cuts(step):
            seen.clear()
            await publish(relay, numbers, seen, cut)
        nursery.cancel_scope.cancel()


async def test_a_viewer_on_a_link_that_is_cut_again_and_again_misses_no_alert(
    relay: MemoryRelay,
) -> None:
    def plan(number: int) -> Cut | None:
        way: Way = "down" if number % 2 else "up"
        return Cut(way, 900 + 97 * number, HOW[number % 3]) if number < 25 else None

    links, log = Links(relay, plan), EventLog()
    async with going_on(relay), open_client(links) as client, trio.open_nursery() as nursery:
        client.subscribe(STREAM)
        nursery.start_soon(log.record, client)
        await until(lambda: len(links.opened) > 25)
        seen = len(log.alerts)
        await until(lambda: len(log.alerts) > seen + 3)
        nursery.cancel_scope.cancel()
