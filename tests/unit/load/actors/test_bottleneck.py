"""A queue in front of a narrow place, on a mock clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from relay.load.actors.network.bottleneck import (
    MAX_BYTES_ON_THE_WAY,
    MAX_PIECES,
    PIECE_BYTES,
    Bottleneck,
    Capacity,
)

pytestmark = pytest.mark.mock_clock
RATE = 125_000.0
"""Bytes a second."""
DATA = bytes(range(256)) * 1000
PIECE_SECONDS = PIECE_BYTES / RATE


def bottleneck(
    *rates: tuple[float, float | None], depth: int = len(DATA), delay: float = 0.0
) -> Bottleneck:
    """One whose rate changes at times since now."""
    start = trio.current_time()
    ends = [*(start + begin for begin, _ in rates[1:]), math.inf]

    def capacity(at: float) -> Capacity:
        return next(
            Capacity(rate, end)
            for (_, rate), end in zip(rates, ends, strict=True)
            if at < end - 1e-6
        )

    return Bottleneck(capacity, lambda: depth, lambda: delay)


@asynccontextmanager
async def running(narrow: Bottleneck) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow.run)
        yield
        nursery.cancel_scope.cancel()


async def arrivals(narrow: Bottleneck, size: int = len(DATA)) -> Sequence[tuple[float, int]]:
    """When the bytes arrive, and how many by then; they are the ones that were put in."""
    start, data, seen = trio.current_time(), bytearray(), []
    with trio.fail_after(1000):
        while len(data) < size and (piece := await narrow.get()):
            data += piece
            seen.append((trio.current_time() - start, len(data)))
    assert data == DATA[:size]
    return seen


async def put_all(narrow: Bottleneck, data: bytes) -> None:
    while data:
        room = await narrow.room()
        narrow.put(data[:room])
        data = data[room:]


async def test_bytes_arrive_at_the_rate_and_a_delay_later() -> None:
    narrow = bottleneck((0, RATE), delay=0.5)
    async with running(narrow):
        narrow.put(DATA)
        for at, count in await arrivals(narrow):
            assert at == pytest.approx(count / RATE + 0.5)


async def test_the_queue_takes_its_depth_at_once_and_then_what_leaves() -> None:
    narrow = bottleneck((0, RATE), depth=20_000, delay=100)
    async with running(narrow):
        start = trio.current_time()
        await put_all(narrow, DATA[:20_000])
        assert trio.current_time() == start
        await put_all(narrow, DATA[20_000:145_000])
        assert trio.current_time() - start == pytest.approx(1, abs=2 * PIECE_SECONDS)


async def test_an_idle_link_saves_nothing_up() -> None:
    narrow = bottleneck((0, RATE))
    async with running(narrow):
        await trio.sleep(60)
        narrow.put(DATA[: 10 * PIECE_BYTES])
        times = [at for at, _ in await arrivals(narrow, 10 * PIECE_BYTES)]
        assert times == pytest.approx([number * PIECE_SECONDS for number in range(1, 11)])


async def test_a_late_wake_up_costs_no_rate() -> None:
    narrow = bottleneck((0, RATE))
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    async with running(narrow):
        narrow.put(DATA)
        clock.jump(1.0)
        assert (await arrivals(narrow))[-1][0] == pytest.approx(len(DATA) / RATE - 1)


@pytest.mark.parametrize("slow", [RATE / 1000, RATE / 10])
async def test_a_change_of_rate_holds_for_what_waits_and_in_the_middle_of_a_piece(
    slow: float,
) -> None:
    narrow = bottleneck((0, RATE), (1, slow), (3, RATE * 2))
    async with running(narrow):
        narrow.put(DATA)
        left = len(DATA) - RATE - 2 * slow
        assert (await arrivals(narrow))[-1][0] == pytest.approx(3 + left / (RATE * 2))


async def test_nothing_passes_while_there_is_no_network_and_what_waits_comes_after() -> None:
    narrow = bottleneck((0, RATE), (1, 0.0), (4, RATE))
    async with running(narrow):
        narrow.put(DATA)
        seen = await arrivals(narrow)
        assert not [at for at, _ in seen if 1 < at <= 4]
        assert seen[-1][0] == pytest.approx(len(DATA) / RATE + 3)


async def test_without_a_rate_only_the_delay_counts() -> None:
    narrow = bottleneck((0, None), delay=2)
    async with running(narrow):
        narrow.put(DATA)
        assert await arrivals(narrow) == [(2, len(DATA))]


async def test_what_was_put_in_before_the_end_arrives() -> None:
    narrow = bottleneck((0, RATE), delay=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow.run)
        narrow.put(DATA)
        narrow.end()
        await arrivals(narrow)
        assert await narrow.get() == b""
    # The nursery has ended: so has `run`.


async def test_a_break_loses_what_waits_and_ends_all_who_wait() -> None:
    narrow = bottleneck((0, RATE), depth=20_000, delay=0.1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow.run)

        async def put_too_much() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await put_all(narrow, DATA)

        nursery.start_soon(put_too_much)
        await trio.sleep(0.2)
        narrow.break_off()
        assert await narrow.get() == b""
    assert trio.current_time() < 1


async def test_a_cancelled_reader_loses_nothing() -> None:
    narrow = bottleneck((0, RATE), delay=1)
    async with running(narrow):
        narrow.put(DATA)
        for _ in range(9):
            with trio.move_on_after(0.11) as waiting:
                await narrow.get()
            assert waiting.cancelled_caught
        await arrivals(narrow)


async def test_as_many_small_pieces_as_large_ones_are_held_in_bounds() -> None:
    for size, most in ((1, 2 * MAX_PIECES + 1), (65_536, MAX_BYTES_ON_THE_WAY + 2 * 65_536)):
        narrow = bottleneck((0, None), depth=65_536, delay=1e6)
        taken = 0
        async with running(narrow):
            with trio.move_on_after(1):
                while True:
                    await narrow.room()
                    narrow.put(bytes(size))
                    taken += size
                    await trio.testing.wait_all_tasks_blocked()
        assert most - 2 * size <= taken <= most


async def test_a_fast_link_passes_more_at_once_to_save_wake_ups() -> None:
    narrow = bottleneck((0, 100 * RATE))
    async with running(narrow):
        narrow.put(DATA)
        assert len(await arrivals(narrow)) < 12
