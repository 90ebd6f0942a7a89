"""A producer that asks is told how many of its frames have come, whatever became of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio.testing
from wsproto import events

from relay.guard.guard import Guard
from relay.guard.throttle import ThrottleRates
from tests.unit.memory import Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

REGISTER = {"type": "register", "streamId": "front-door", "window": 4}
FRAME = {"type": "video-frame", "data": "AAAA"}


async def asking(relay: MemoryRelay, **options: Any) -> Client:
    """A phone that asks for `received`, with nothing unread."""
    phone = await relay.login(**options)
    reply = await phone.ask(REGISTER)
    assert (reply["code"], reply["window"]) == ("REGISTERED", 4)
    await phone.receive_type("status")
    return phone


async def send_at_once(phone: Client, *messages: dict[str, Any]) -> None:
    encoded = [phone.protocol.send(events.TextMessage(json.dumps(each))) for each in messages]
    await phone.send_bytes(b"".join(encoded))


async def test_frames_are_counted_as_they_come(relay: MemoryRelay) -> None:
    phone = await asking(relay)
    for number in range(1, 4):
        await phone.send(FRAME)
        received = await phone.receive_type("received")
        assert (received["streamId"], received["frames"]) == ("front-door", number)


async def test_frames_that_come_together_are_reported_once(relay: MemoryRelay) -> None:
    phone = await asking(relay)
    await send_at_once(phone, *[FRAME] * 5)
    assert (await phone.receive_type("received"))["frames"] == 5
    await send_at_once(phone, FRAME, {"type": "streams"}, FRAME)
    assert [(await phone.receive())["type"] for _ in range(3)] == [
        "received",
        "success",
        "received",
    ]


async def test_who_does_not_ask_is_told_nothing(relay: MemoryRelay) -> None:
    phone = await relay.login()
    reply = await phone.ask({"type": "register", "streamId": "front-door"})
    assert "window" not in reply
    await phone.receive_type("status")
    await phone.send(FRAME)
    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_frames_behind_the_request_are_reported_with_it(relay: MemoryRelay) -> None:
    phone = await relay.login()
    await send_at_once(phone, REGISTER, FRAME, FRAME)
    assert (await phone.receive_type("success"))["window"] == 4
    assert (await phone.receive_type("received"))["frames"] == 2


async def test_registering_again_goes_on_counting_and_may_stop_the_reports(
    relay: MemoryRelay,
) -> None:
    phone = await asking(relay)
    await phone.send(FRAME)
    await phone.receive_type("received")
    await phone.ask({**REGISTER, "metadata": {"night": True}})
    await phone.send(FRAME)
    assert (await phone.receive_type("received"))["frames"] == 2
    assert "window" not in await phone.ask({"type": "register", "streamId": "front-door"})
    await phone.receive_type("status")
    await phone.send(FRAME)
    assert (await phone.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_refused_frames_have_come_too(relay: MemoryRelay) -> None:
    phone = await asking(relay)
    await phone.send({**FRAME, "streamId": "another"})
    assert (await phone.receive_type("received"))["frames"] == 1
    await phone.send({**FRAME, "streamId": "another"})
    assert (await phone.receive_type("received"))["frames"] == 2


@pytest.mark.parametrize("rates", [("60/minute", "1000/second"), ("60/minute", "1/minute")])
async def test_frames_that_are_dropped_for_their_rate_have_come_too(
    relay: MemoryRelay, rates: tuple[str, str]
) -> None:
    relay.guard = Guard(throttle_rates=ThrottleRates(*rates, "33554432/second"))
    phone = await asking(relay)
    await send_at_once(phone, *[FRAME] * 30, {"type": "streams"})
    await send_at_once(phone, *[FRAME] * 70)
    frames = 0
    while frames < 100:
        frames = (await phone.receive_type("received"))["frames"]
    assert frames == 100


async def test_a_phone_that_does_not_read_is_told_the_last_count(relay: MemoryRelay) -> None:
    phone = await asking(relay, capacity=10)
    for _ in range(100):
        await phone.send(FRAME)
        await trio.testing.wait_all_tasks_blocked()
    counts: list[int] = []
    while not counts or counts[-1] < 100:
        counts.append((await phone.receive_type("received"))["frames"])
    assert len(counts) <= 3


@pytest.mark.parametrize("window", [0, 1025, -1, "4", 1.5])
async def test_other_windows_are_refused(relay: MemoryRelay, window: object) -> None:
    phone = await relay.login()
    assert (await phone.ask({**REGISTER, "window": window}))["code"] == "INVALID_MESSAGE"
