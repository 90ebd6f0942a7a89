"""Viewers that must miss no frame, at another node than the phone."""

from __future__ import annotations

import pytest
import trio

from tests.unit.cluster.frames import VIEW, frame, numbers, only, received
from tests.unit.cluster.memory_cluster import MemoryCluster

pytestmark = pytest.mark.mock_clock

TOO_SLOW = (4002, "too slow")


async def test_they_get_all_frames_over_a_link_that_stalls(pair: MemoryCluster) -> None:
    pair.capacity = 50_000
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    link = pair.call("b", "a").ours
    link.stall()
    for _ in range(60):
        await phone.send(frame(b"x" * 20_000))
        await trio.sleep(0.03)
    link.rate = 2e6
    link.go_on()
    assert await numbers(viewer, 3) == list(range(1, 61))


@pytest.mark.parametrize("comes", ["second", "instead"])
async def test_one_who_comes_later_is_told_to_the_origin_at_once(
    pair: MemoryCluster, comes: str
) -> None:
    pair.capacity = 50_000
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer(capacity=8 << 20)
    if comes == "second":
        viewer = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    else:
        await viewer.ask({**VIEW, "policy": "lossless"})
        await trio.sleep(0.01)
    link = pair.call("b", "a").ours
    link.stall()
    for _ in range(60):
        await phone.send(frame(b"x" * 20_000))
        await trio.sleep(0.01)
    link.rate = 2e6
    link.go_on()
    assert await numbers(viewer, 3) == list(range(1, 61))
    (edge,) = pair["a"].stream().edges
    assert edge.lossless


async def test_the_link_need_not_keep_all_once_they_have_left(pair: MemoryCluster) -> None:
    await pair["a"].phone()
    viewer = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    await viewer.ask(VIEW)
    await trio.sleep(1.1)
    (edge,) = pair["a"].stream().edges
    assert not edge.lossless


async def test_only_they_are_closed_where_more_waits_for_the_link_than_may(
    pair: MemoryCluster,
) -> None:
    pair.capacity = 50_000
    phone = await pair["a"].phone()
    lossless = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    latest = await pair["b"].viewer()
    near = await pair["a"].viewer(policy="lossless", capacity=8 << 20)
    link = pair.call("b", "a").ours
    link.stall()
    got_near = []
    for _ in range(120):
        await phone.send(frame(b"x" * 40_000))
        got_near += await numbers(near, 0.02)
    assert pair["a"].links.totals.waiting <= 120
    link.go_on()
    last, close = await lossless.hear_end()
    assert (last["code"], close) == ("TOO_SLOW", TOO_SLOW)
    got = await numbers(latest)
    assert got[-1] == 120
    await phone.send(frame(b"next"))
    assert await numbers(latest) == [121]
    assert got_near == list(range(1, 121))
    assert only("status", await received(phone, 3))[-1]["consumers"] == 2


async def test_a_new_one_misses_nothing_after_another_was_closed(pair: MemoryCluster) -> None:
    pair.capacity = 50_000
    phone = await pair["a"].phone()
    first = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    link = pair.call("b", "a").ours
    link.stall()
    for _ in range(120):
        await phone.send(frame(b"x" * 40_000))
        await trio.sleep(0.01)
    link.go_on()
    await first.hear_end()
    second = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    begins = await numbers(second)
    link.stall()
    for _ in range(20):
        await phone.send(frame(b"x" * 40_000))
        await trio.sleep(0.05)
    link.rate = 2e6
    link.go_on()
    assert begins + await numbers(second, 3) == list(range(120, 141))


async def test_they_are_closed_where_a_link_was_cut_and_frames_were_lost(
    pair: MemoryCluster,
) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    await phone.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    pair.cut()
    for _ in range(3):
        await phone.send(frame(b"lost"))
    assert (await viewer.hear_end())[1] == TOO_SLOW


async def test_they_stay_where_a_link_was_cut_and_nothing_was_lost(pair: MemoryCluster) -> None:
    phone = await pair["a"].phone()
    viewer = await pair["b"].viewer(policy="lossless", capacity=8 << 20)
    await phone.send(frame(b"1"))
    assert await numbers(viewer) == [1]
    pair.cut()
    await trio.sleep(1)
    await phone.send(frame(b"2"))
    assert await numbers(viewer) == [2]
