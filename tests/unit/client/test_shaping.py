"""The link of a slow viewer, on a mock clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.client import Meter, ShapedStream
from relay.client.shaping import BUCKET_SIZE, TokenBucket

MEGABIT = 125_000  # bytes per second
PAYLOAD = bytes(range(256)) * 1000


async def receive(stream: trio.abc.Stream, amount: int) -> bytes:
    data = bytearray()
    while len(data) < amount:
        data += await stream.receive_some(100_000)
    return bytes(data)


async def test_a_shaped_stream_receives_at_its_rate_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    meter = Meter()
    shaped = ShapedStream(near, meter, TokenBucket(MEGABIT))
    await far.send_all(PAYLOAD)
    start = trio.current_time()
    assert await receive(shaped, len(PAYLOAD)) == PAYLOAD
    seconds = trio.current_time() - start
    assert seconds == pytest.approx((len(PAYLOAD) - BUCKET_SIZE) / MEGABIT)
    assert meter.received == len(PAYLOAD)


async def test_no_read_is_larger_than_the_bucket(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    shaped = ShapedStream(near, Meter(), TokenBucket(MEGABIT))
    await far.send_all(PAYLOAD)
    assert len(await shaped.receive_some()) == BUCKET_SIZE
    assert len(await shaped.receive_some(100_000)) == BUCKET_SIZE
    assert len(await shaped.receive_some(10)) == 10


async def test_an_idle_link_saves_up_no_more_than_a_full_bucket(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bucket = TokenBucket(MEGABIT)
    await trio.sleep(60)
    start = trio.current_time()
    for _ in range(11):
        await bucket.take(BUCKET_SIZE)
    assert trio.current_time() - start == pytest.approx(10 * BUCKET_SIZE / MEGABIT)


async def test_a_stream_without_a_bucket_only_counts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    meter = Meter()
    stream = ShapedStream(near, meter)
    start = trio.current_time()
    await far.send_all(PAYLOAD)
    await stream.send_all(b"12345")
    assert await receive(stream, len(PAYLOAD)) == PAYLOAD
    await far.send_eof()
    assert await stream.receive_some() == b""
    assert trio.current_time() == start
    assert (meter.received, meter.sent) == (len(PAYLOAD), 5)


async def test_closing_a_shaped_stream_closes_the_one_below() -> None:
    near, far = trio.testing.memory_stream_pair()
    await ShapedStream(near, Meter(), TokenBucket(MEGABIT)).aclose()
    assert await far.receive_some() == b""
