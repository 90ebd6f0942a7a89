"""The network of one connection, on a mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from relay.load.actors.network import MAX_CHUNKS_IN_FLIGHT, ShapedLink, open_network
from relay.load.scenario.groups import Network

pytestmark = pytest.mark.mock_clock
MEGABIT = 1_000_000
Far = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


@asynccontextmanager
async def shaped(network: Network) -> AsyncIterator[tuple[ShapedLink, Far]]:
    near, far = trio.testing.memory_stream_pair()
    async with open_network(near, lambda: network, Random(1)) as link:
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
    assert 2.4 < max(waits) <= 3.0
    assert sum(wait > 0.1 for wait in waits) in range(4, 8)


async def test_a_link_is_cut_after_about_its_time_and_stays_so() -> None:
    lives = []
    for seed in range(30):
        near, far = trio.testing.memory_stream_pair()
        async with open_network(near, lambda: Network(cut_every=20), Random(seed)) as link:
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
    async with open_network(near, lambda: Network(delay=0.2), Random(1)) as link:
        await link.send_all(b"goodbye")
    assert await receive(far, 7) == b"goodbye"


async def test_a_link_holds_a_bounded_number_of_reads() -> None:
    async with shaped(Network(delay=1e6)) as (link, far):
        for _ in range(200):
            await far.send_all(b"x")
            await trio.testing.wait_all_tasks_blocked()
        assert link._in_send.statistics().current_buffer_used == MAX_CHUNKS_IN_FLIGHT
