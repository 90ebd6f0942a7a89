"""Tasks rest while nobody is connected."""

from __future__ import annotations

import pytest
import trio

from relay.concurrency.activity import REST_INTERVAL, Activity

pytestmark = pytest.mark.mock_clock


async def test_rest_ends_when_somebody_connects() -> None:
    activity, start = Activity(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(activity.rest)
        await trio.sleep(10)
        activity.note(active=True)
    assert trio.current_time() == start + 10


async def test_rest_ends_after_a_while_though_nobody_connects() -> None:
    activity, start = Activity(), trio.current_time()
    await activity.rest()
    assert trio.current_time() == start + REST_INTERVAL


async def test_there_is_no_rest_while_anybody_is_connected() -> None:
    activity, start = Activity(), trio.current_time()
    activity.note(active=True)
    await activity.rest()
    assert trio.current_time() == start


async def test_the_first_who_connects_wakes_and_those_after_do_not() -> None:
    activity = Activity()
    woken: list[bool] = []
    activity.on_begin(lambda: woken.append(activity.active))
    for active in (False, True, True, False, False, True):
        activity.note(active=active)
    assert woken == [True, True]
