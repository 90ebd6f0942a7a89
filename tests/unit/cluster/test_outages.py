"""What viewers see where nodes cannot reach each other for a while."""

from __future__ import annotations

import pytest
import trio

from tests.unit.cluster.frames import frame, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster

pytestmark = pytest.mark.mock_clock


@pytest.mark.parametrize("seconds", [0.5, 4.0, 12.0])
async def test_nobody_gets_a_frame_twice_after_an_outage(
    pair: MemoryCluster, seconds: float
) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    for _ in range(3):
        await phone.send(frame(b"before"))
    assert await numbers(viewer) == [1, 2, 3]
    pair.separate("a", "b")
    await trio.sleep(seconds)
    pair.partitions.clear()
    messages = await received(viewer, 15)
    assert only("video-frame", messages) == []
    states = [each["status"] for each in only("status", messages)]
    assert states in ([], ["offline", "streaming"])
    await phone.send(frame(b"after"))
    assert await numbers(viewer) == [4]


async def test_a_newcomer_gets_the_last_frame_after_an_outage(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"before"))
    assert await numbers(viewer) == [1]
    pair.separate("a", "b")
    await trio.sleep(12)
    pair.partitions.clear()
    await received(viewer, 15)
    newcomer = await pair["b"].viewer()
    assert await numbers(newcomer) == [1]


async def test_those_who_came_during_an_outage_get_the_last_frame(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer()
    await phone.send(frame(b"before"))
    assert await numbers(viewer) == [1]
    pair.separate("a", "b")
    await trio.sleep(12)
    newcomer = await pair["b"].viewer()
    pair.partitions.clear()
    assert await numbers(newcomer, 15) == [1]
    assert await numbers(viewer) == []
