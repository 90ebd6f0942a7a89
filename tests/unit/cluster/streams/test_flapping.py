"""Viewers that come and go as fast as they can."""

from __future__ import annotations

import pytest
import trio

from relay.cluster.streams.edge import MAX_RENEWED_CARRIES, RENEWED_CARRY_RATE
from tests.unit.cluster.frames import VIEW, frame, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster
from tests.unit.memory import Client

pytestmark = pytest.mark.mock_clock

SECONDS = 5


async def come_and_go(viewer: Client) -> int:
    """Subscribe and leave, again and again; how often that was."""
    times, until = 0, trio.current_time() + SECONDS
    while trio.current_time() < until:
        await viewer.send(VIEW)
        await viewer.receive_type("success")
        await trio.sleep(0.004)
        await viewer.ask({"type": "unsubscribe", "streamId": "front-door"})
        await trio.sleep(0.004)
        times += 1
    return times


async def test_a_viewer_that_comes_and_goes_does_not_fill_the_link(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    await phone.send(frame(b"x" * 60_000))
    viewer = await pair["b"].relay.login()
    times = await come_and_go(viewer)
    crossed = pair["a"].links.totals.frames.accepted
    most = 2 + MAX_RENEWED_CARRIES + SECONDS * RENEWED_CARRY_RATE
    assert times > 10 * most
    assert crossed <= most
    assert len(only("status", await received(phone, 3))) <= 2 * most


async def test_who_stays_behind_them_gets_the_stream_within_a_second(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    await phone.send(frame(b"x"))
    await come_and_go(await pair["b"].relay.login())
    begun = trio.current_time()
    viewer = await pair["b"].viewer()
    assert (await viewer.receive_type("video-frame"))["seq"] == 1
    assert trio.current_time() - begun <= 1.1
    await trio.sleep(SECONDS)
    await phone.send(frame(b"y"))
    assert (await viewer.receive_type("video-frame"))["seq"] == 2
