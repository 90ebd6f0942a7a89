"""The client on a link that is slower than its patience, with the real connection code at the other
end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from attrs import evolve

from relay.client import ClientState, Frame, RelayClient, StateChange
from relay.transport.budget import Budget
from tests.unit.client.slow_link import POLICY, SlowLink
from tests.unit.memory import Client, MemoryRelay, open_relay

pytestmark = pytest.mark.mock_clock

PROMISED = POLICY.silence_timeout + POLICY.ping_timeout
LINKS = pytest.mark.parametrize(
    ("size", "rate"), [(256 * 1024, 10_000), (3_000_000, 125_000)], ids=["10KBps", "1Mbps"]
)
BUFFERS = pytest.mark.parametrize("buffers", [16 * 1024, 1 << 20], ids=["tight", "buffered"])


@pytest.fixture
async def relay() -> AsyncIterator[MemoryRelay]:
    """One that takes messages as large as they may be."""
    async with open_relay() as relay:
        relay.timing = evolve(relay.timing, max_message_size=16 << 20)
        relay.budget = Budget(64 << 20)
        yield relay


async def next_frame(client: RelayClient) -> Frame:
    """The next frame; fails where the connection is lost before that."""
    async for event in client:
        assert not (isinstance(event, StateChange) and event.state is ClientState.WAITING), event
        if isinstance(event, Frame):
            return event
    raise AssertionError("the client has ended")


async def lost(client: RelayClient) -> None:
    async for event in client:
        if isinstance(event, StateChange) and event.state is ClientState.WAITING:
            return


async def packed_phone(relay: MemoryRelay) -> Client:
    return await relay.phone(msgpack=True)


@LINKS
@BUFFERS
async def test_long_frames_arrive_that_take_longer_to_come_than_silence_may_last(
    relay: MemoryRelay, size: int, rate: float, buffers: int
) -> None:
    phone, link = await packed_phone(relay), SlowLink(relay, down=rate, buffers=buffers)
    async with link.client() as client:
        client.subscribe("front-door")
        await trio.sleep(1)
        for _ in range(3):
            picture = os.urandom(size)
            await phone.send({"type": "video-frame", "data": picture})
            assert (await next_frame(client)).data == picture
    assert len(link.streams) == 1


async def test_an_answer_that_waits_behind_a_very_long_frame_is_waited_for(
    relay: MemoryRelay,
) -> None:
    phone, link = await packed_phone(relay), SlowLink(relay, down=20_000, buffers=2 << 20)
    async with link.client() as client:
        client.subscribe("front-door")
        await trio.sleep(1)
        picture = os.urandom(2_000_000)
        await phone.send({"type": "video-frame", "data": picture})
        assert (await next_frame(client)).data == picture
    assert len(link.streams) == 1


async def test_an_answer_is_waited_for_behind_the_frames_that_are_in_flight(
    relay: MemoryRelay,
) -> None:
    phone, link = await packed_phone(relay), SlowLink(relay, down=2500, buffers=1 << 20)
    async with link.client() as client:
        client.subscribe("front-door", window=12, policy="lossless")
        await trio.sleep(1)
        for _ in range(12):
            await phone.send({"type": "video-frame", "data": bytes(20_000)})
            await trio.sleep(0.1)
        begun = trio.current_time()
        while (await next_frame(client)).seq < 12:
            pass
    assert trio.current_time() - begun > 90
    assert len(link.streams) == 1


@LINKS
async def test_long_frames_arrive_that_take_longer_to_leave_than_silence_may_last(
    relay: MemoryRelay, size: int, rate: float
) -> None:
    viewer, link = await relay.viewer(msgpack=True), SlowLink(relay, up=rate)
    async with link.client() as client:
        phone = client.publish("front-door")
        await phone.ready()
        for _ in range(2):
            picture = os.urandom(size)
            assert phone.send_frame(picture)
            assert (await viewer.receive_type("video-frame"))["data"] == picture
            await trio.sleep(1)
    assert len(link.streams) == 1


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_link_that_dies_in_the_middle_of_a_long_frame_is_noticed_in_time(
    relay: MemoryRelay, way: str
) -> None:
    rates: dict[str, Any] = {way: 10_000}
    link = SlowLink(relay, **rates)
    other = await packed_phone(relay) if way == "down" else None
    async with link.client() as client:
        if other is not None:
            client.subscribe("front-door")
            await trio.sleep(1)
            await other.send({"type": "video-frame", "data": bytes(1 << 20)})
        else:
            phone = client.publish("front-door")
            await phone.ready()
            phone.send_frame(bytes(1 << 20))
        await trio.sleep(45)
        assert client.state is ClientState.READY
        link.streams[-1].dead = True
        dead = trio.current_time()
        await lost(client)
        assert trio.current_time() - dead <= PROMISED + 1
