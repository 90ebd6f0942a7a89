"""A task that works for many is woken by each of them, and misses none."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from relay.concurrency.wakeup import Wakeup

pytestmark = pytest.mark.mock_clock


async def test_a_task_that_waits_is_woken() -> None:
    wakeup = Wakeup()
    woken: list[float] = []

    async def work() -> None:
        while True:
            await wakeup.wait()
            woken.append(trio.current_time() - start)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        for _ in range(3):
            await trio.sleep(1)
            wakeup.set()
            wakeup.set()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert woken == [1, 2, 3]


async def test_what_happens_while_the_task_is_at_work_is_not_missed() -> None:
    wakeup = Wakeup()
    wakeup.set()
    with trio.fail_after(0.5):
        await wakeup.wait()
    with trio.move_on_after(0.5) as scope:
        await wakeup.wait()
    assert scope.cancelled_caught


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    wakeup = Wakeup()
    with trio.move_on_after(1):
        await wakeup.wait()
    wakeup.set()
    with trio.fail_after(0.5):
        await wakeup.wait()
