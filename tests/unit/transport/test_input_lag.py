"""How late the event loop may read: not at all while it sleeps, and as late as it was busy."""

from __future__ import annotations

import socket
import time

import trio
import trio.testing

from relay.transport.input_lag import MIN_SLEEP, input_lag, watch_input

BUSY_SECONDS = 0.05


async def test_nobody_watches() -> None:
    time.sleep(MIN_SLEEP)  # noqa: ASYNC251 (the loop is to be busy)
    assert input_lag() == 0.0


async def test_what_comes_while_the_loop_is_busy_may_have_come_any_time_meanwhile() -> None:
    ours, theirs = socket.socketpair()
    with watch_input(), trio.socket.from_stdlib_socket(ours) as reading, theirs:
        lags = []

        async def read() -> None:
            await reading.recv(1)
            lags.append(input_lag())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")
            time.sleep(BUSY_SECONDS)  # noqa: ASYNC251
    assert lags[0] >= BUSY_SECONDS


async def test_what_wakes_a_loop_that_sleeps_has_come_just_now() -> None:
    lags = []
    with watch_input():
        for _ in range(10):  # the machine may be busy, too
            await trio.sleep(BUSY_SECONDS)
            lags.append(input_lag())
    assert min(lags) < BUSY_SECONDS / 2


async def test_what_is_read_first_came_while_somebody_watched() -> None:
    began = time.perf_counter()
    with watch_input():
        await trio.lowlevel.checkpoint()  # the loop looks, and does not sleep
        assert 0 <= input_lag() <= time.perf_counter() - began


async def test_a_second_watch_changes_nothing() -> None:
    began = time.perf_counter()
    with watch_input():
        with watch_input():
            pass
        await trio.sleep(0.001)
        assert 0 <= input_lag() <= time.perf_counter() - began
    assert input_lag() == 0.0
