"""The network of one connection, on a mock clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from relay.load.actors.network.shaped_link import NetworkAt, ShapedLink, open_network
from relay.load.scenario.groups import Network

pytestmark = pytest.mark.mock_clock
MEGABIT = 1_000_000
Far = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


def at_all_times(network: Network) -> NetworkAt:
    return lambda _: (network, math.inf)


@asynccontextmanager
async def shaped(network: Network) -> AsyncIterator[tuple[ShapedLink, Far]]:
    near, far = trio.testing.memory_stream_pair()
    async with open_network(near, at_all_times(network), Random(1)) as link:
        yield link, far


async def receive(stream: trio.abc.ReceiveStream, amount: int) -> bytes:
    data = bytearray()
    while len(data) < amount:
        received = await stream.receive_some(100_000)
        if not received:
            break
        data += received
    return bytes(data)


async def test_a_link_of_1_mbit_receives_1_mbit_each_second() -> None:
    data = bytes(range(256)) * 2000
    async with shaped(Network(bandwidth=MEGABIT)) as (link, far):
        await far.send_all(data)
        start = trio.current_time()
        assert await receive(link, len(data)) == data
        assert trio.current_time() - start == pytest.approx(len(data) * 8 / MEGABIT, rel=0.02)


async def test_uploads_have_a_bandwidth_of_their_own() -> None:
    data = bytes(125_000)
    async with shaped(Network(upload=MEGABIT)) as (link, far):
        start = trio.current_time()
        await link.send_all(data)
        assert await receive(far, len(data)) == data
        assert trio.current_time() - start == pytest.approx(1.0, rel=0.05)


async def test_a_delay_holds_each_way_and_costs_no_bandwidth() -> None:
    async with shaped(Network(delay=0.1)) as (link, far):
        start = trio.current_time()
        for number in range(10):
            await link.send_all(bytes((number,)))
        assert await receive(far, 10) == bytes(range(10))
        assert trio.current_time() - start == pytest.approx(0.1)
        await far.send_all(b"back")
        assert await receive(link, 4) == b"back"
        assert trio.current_time() - start == pytest.approx(0.2)


async def test_jitter_varies_the_delay_and_keeps_the_order() -> None:
    delays = []
    async with shaped(Network(delay=0.05, jitter=0.05)) as (link, far):
        for number in range(50):
            start = trio.current_time()
            await far.send_all(bytes((number,)))
            assert await link.receive_some() == bytes((number,))
            delays.append(trio.current_time() - start)
        for number in range(50):
            await far.send_all(bytes((number,)))
            await trio.testing.wait_all_tasks_blocked()
        assert await receive(link, 50) == bytes(range(50))
    assert min(delays) >= 0.05 - 1e-9
    assert max(delays) <= 0.1 + 1e-9
    assert max(delays) - min(delays) > 0.02


async def test_a_stall_stops_everything_for_its_time() -> None:
    async with shaped(Network(stall_every=10, stall_for=3)) as (link, far):
        waits = []
        for _ in range(100):
            start = trio.current_time()
            await far.send_all(b"x")
            await link.receive_some()
            waits.append(trio.current_time() - start)
            await trio.sleep(0.5)
    assert 2.4 < max(waits) <= 3.0 + 1e-9
    assert sum(wait > 0.1 for wait in waits) in range(4, 8)


async def test_a_link_is_cut_after_about_its_time_and_stays_so() -> None:
    lives = []
    for seed in range(30):
        near, far = trio.testing.memory_stream_pair()
        async with open_network(near, at_all_times(Network(cut_every=20)), Random(seed)) as link:
            start = trio.current_time()
            assert await link.receive_some() == b""
            lives.append(trio.current_time() - start)
            assert link.was_cut
            with pytest.raises(trio.BrokenResourceError):
                await link.send_all(b"x")
        await far.aclose()
    assert sum(lives) / len(lives) == pytest.approx(20, rel=0.5)


async def test_what_was_said_last_still_leaves_a_link_with_a_delay() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_network(near, at_all_times(Network(delay=0.2)), Random(1)) as link:
        await link.send_all(b"goodbye")
    assert await receive(far, 7) == b"goodbye"


@pytest.mark.parametrize(("queue", "taken"), [(200_000, 204_096), (None, 8192)])
async def test_a_queue_is_filled_at_once_and_only_then_does_the_sender_see_the_link(
    queue: int | None, taken: int
) -> None:
    near, far = trio.testing.lockstep_stream_pair()  # it takes what is read
    network = Network(bandwidth=MEGABIT, queue=queue)
    async with open_network(near, at_all_times(network), Random(1)):
        with trio.move_on_after(0.005):
            await far.send_all(bytes(taken - 1))
            assert trio.current_time() == 0
            await far.send_all(bytes(4096))
            raise AssertionError("more was taken than fits in the queue and the narrow place")
        assert trio.current_time() == pytest.approx(0.005)


async def test_an_upload_has_a_queue_of_its_own() -> None:
    async with shaped(Network(upload=MEGABIT, upload_queue=500_000)) as (link, far):
        await link.send_all(bytes(500_000))
        assert trio.current_time() == 0
        await link.send_all(bytes(125_000))
        assert trio.current_time() == pytest.approx(1, rel=0.05)
        await receive(far, 625_000)
        assert trio.current_time() == pytest.approx(5, rel=0.02)


async def test_a_network_changes_while_bytes_wait() -> None:
    slow = Network(bandwidth=0, queue=500_000, delay=0.1)
    fast = Network(bandwidth=MEGABIT, queue=500_000, delay=0.2)
    near, far = trio.testing.memory_stream_pair()
    changing = lambda at: (slow, 7.0) if at < 7 else (fast, math.inf)  # noqa: E731
    async with open_network(near, changing, Random(1)) as link:
        await far.send_all(bytes(250_000))
        await receive(link, 250_000)
        assert trio.current_time() == pytest.approx(9.2, rel=0.01)


async def test_a_link_that_is_cut_loses_what_waits_in_it() -> None:
    async with shaped(Network(bandwidth=MEGABIT, queue=500_000, delay=0.1)) as (link, far):
        await far.send_all(bytes(250_000))
        await trio.sleep(1)
        link.cut()
        assert await receive(link, 250_000) == b""
        assert trio.current_time() < 1.2


async def test_a_block_with_a_full_queue_ends_without_it() -> None:
    network = Network(bandwidth=1000, upload=1000, queue=500_000, upload_queue=500_000)
    async with shaped(network) as (link, far):
        await far.send_all(bytes(500_000))
        await link.send_all(bytes(500_000))
        await trio.sleep(1)
    assert trio.current_time() < 2
