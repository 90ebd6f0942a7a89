"""The thin links of scripts/narrow_link.py, on a mock clock."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing

from relay.client import Meter, ShapedStream

FOLDER = Path(__file__).resolve().parents[3] / "scripts"
RATE = 125_000
"""Bytes a second."""
DATA = bytes(range(256)) * 1000
PACKET_SECONDS = 1448 / RATE


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import narrow_link  # noqa: PLC0415 (where it is, is known only now)

    yield narrow_link
    del sys.modules["narrow_link"]


class Ends:
    """What is sent into a link, and what comes out of it."""

    def __init__(self, links: ModuleType, **direction: Any) -> None:
        self.sender, source = trio.testing.memory_stream_pair()
        target, self.receiver = trio.testing.memory_stream_pair()
        self.taken = Meter()
        self.direction = links.Direction(**direction)
        counted = ShapedStream(source, self.taken)
        self.carriage = links.Carriage(counted, target, self.direction)

    async def arrivals(self, size: int) -> list[tuple[float, int]]:
        """When the bytes arrive, and how many by then; they are the ones that were sent."""
        start, data, seen = trio.current_time(), bytearray(), []
        while len(data) < size:
            data += await self.receiver.receive_some()
            seen.append((trio.current_time() - start, len(data)))
        assert data == DATA[:size]
        return seen


async def test_bytes_arrive_at_the_rate_of_the_link_and_a_delay_later(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(links, rate=RATE, queue=len(DATA), delay=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.carriage.run)
        await ends.sender.send_all(DATA)
        for at, count in await ends.arrivals(len(DATA)):
            assert at == pytest.approx(count / RATE + 0.5)
        nursery.cancel_scope.cancel()


async def test_no_more_is_taken_than_the_queue_holds(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(links, rate=RATE, queue=20_000, delay=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.carriage.run)
        await ends.sender.send_all(DATA)
        await trio.testing.wait_all_tasks_blocked()
        assert ends.taken.received == 20_000
        for seconds in range(1, len(DATA) // RATE):
            await trio.sleep(1)
            assert seconds * RATE <= ends.taken.received <= 20_000 + seconds * RATE
        nursery.cancel_scope.cancel()


async def test_an_idle_link_saves_nothing_up(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(links, rate=RATE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.carriage.run)
        await trio.sleep(60)
        await ends.sender.send_all(DATA[:14_480])
        (first, _), *_, (last, _) = await ends.arrivals(14_480)
        assert first == pytest.approx(PACKET_SECONDS)
        assert last == pytest.approx(10 * PACKET_SECONDS)
        nursery.cancel_scope.cancel()


async def test_a_changed_rate_holds_for_what_waits(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(links, rate=RATE, queue=len(DATA))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.carriage.run)
        await ends.sender.send_all(DATA)

        async def slow_down() -> None:
            await trio.sleep(1)
            ends.direction.rate = RATE / 10

        nursery.start_soon(slow_down)
        end = (await ends.arrivals(len(DATA)))[-1][0]
        slow = 10 * (len(DATA) - RATE) / RATE
        assert end == pytest.approx(1 + slow, abs=10 * PACKET_SECONDS)
        nursery.cancel_scope.cancel()


async def test_what_was_sent_before_the_end_arrives(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    ends = Ends(links, rate=RATE, queue=1000, delay=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.carriage.run)
        await ends.sender.send_all(DATA[:5000])
        await ends.sender.send_eof()
        await ends.arrivals(5000)
    # The nursery has ended: so has the carriage.


async def test_a_connection_through_the_proxy_takes_its_time_in_both_directions(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the kernel takes a moment
    link = links.Link(links.Direction(RATE, delay=1), links.Direction(RATE, delay=2))

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        port = listeners[0].socket.getsockname()[1]
        connect = partial(links.connect_to, "127.0.0.1", port)
        proxy = await nursery.start(links.serve_link, link, connect)
        async with await trio.open_tcp_stream("127.0.0.1", proxy) as client:
            start = trio.current_time()
            await client.send_all(DATA[:1000])
            assert await client.receive_some() == DATA[:1000]
            assert trio.current_time() - start == pytest.approx(3 + 2000 / RATE)
        nursery.cancel_scope.cancel()


async def test_when_the_client_leaves_the_server_sees_it(
    links: ModuleType, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    sees_the_end = trio.Event()

    async def see_the_end(stream: trio.SocketStream) -> None:
        async for _ in stream:
            pass
        sees_the_end.set()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, see_the_end, listeners)
        port = listeners[0].socket.getsockname()[1]
        connect = partial(links.connect_to, "127.0.0.1", port)
        proxy = await nursery.start(links.serve_link, links.Link(), connect)
        async with await trio.open_tcp_stream("127.0.0.1", proxy) as client:
            await client.send_all(b"hello")
        with trio.fail_after(60):
            await sees_the_end.wait()
        nursery.cancel_scope.cancel()
