"""What viewers that do not read cost: a place in a queue each, and the frames once."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import trio.testing

from relay.hub.frames.frame import Frame
from tests.unit.memory import MemoryRelay

pytestmark = pytest.mark.mock_clock

SIZE = 64 * 1024


def living() -> list[int]:
    """The `seq` of all frames that anybody holds."""
    gc.collect()
    return sorted(each.seq for each in gc.get_objects() if isinstance(each, Frame))


@pytest.mark.parametrize(
    ("viewers", "share"),
    # The frames themselves weigh more where fewer share them.
    [(250, 12 * 1024), pytest.param(1000, 10 * 1024, marks=pytest.mark.slow)],
)
async def test_stalled_viewers_hold_one_frame_each_which_they_share(
    relay: MemoryRelay, viewers: int, share: int
) -> None:
    phone = await relay.phone()
    for number in range(viewers):
        await relay.viewer(capacity=600 + number % 2 * 1000, msgpack=number % 4 == 0)
    sent = 0

    async def send(count: int) -> int:
        """Send frames; returns the bytes in use when all have been offered."""
        nonlocal sent
        for _ in range(count):
            await phone.send({"type": "video-frame", "data": "A" * SIZE})
            sent += 1
            await trio.testing.wait_all_tasks_blocked()
        assert relay.metrics.frames_accepted == sent
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await send(5)
        after = [await send(10), await send(10)]
    finally:
        tracemalloc.stop()
    assert relay.hub.ledger().waiting == viewers
    # The frame of which each has a part, and the newest one.
    assert living() == [1, sent]
    # Each is there in two encodings. The rest is what the link and the writer of a viewer take: far
    # less than a frame. The writer starts when a frame first has to wait, so it counts here.
    assert before < viewers * share
    assert all(used - before < 2 * SIZE for used in after)


async def test_when_they_leave_even_that_is_gone(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewers = [await relay.viewer(capacity=600) for _ in range(50)]
    for _ in range(5):
        await phone.send({"type": "video-frame", "data": "A" * SIZE})
        await trio.testing.wait_all_tasks_blocked()
    for client in (phone, *viewers):
        client.link.close()
    await trio.sleep(10)
    assert living() == []
    assert relay.hub.ledger().waiting == 0


async def test_a_lossless_viewer_that_stalls_is_let_go_with_all_that_it_let_wait(
    relay: MemoryRelay,
) -> None:
    phone = await relay.phone()
    for _ in range(50):
        await relay.viewer(capacity=600, policy="lossless")
    for _ in range(20):
        await phone.send({"type": "video-frame", "data": "A" * 8000})
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(10)
    assert relay.hub.count().consumers == 0
    assert living() == [20]  # for whoever subscribes next
