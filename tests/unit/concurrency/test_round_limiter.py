from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from relay.concurrency.round_limiter import TASKS_PER_ROUND, RoundLimiter


class Rounds(trio.abc.Instrument):
    """Counts the rounds of the scheduler."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_one_task_goes_on_at_once() -> None:
    limiter = RoundLimiter()
    for _ in range(TASKS_PER_ROUND):
        await limiter.wait()


async def test_no_more_than_a_few_tasks_go_on_in_one_round_in_their_order() -> None:
    rounds, limiter = Rounds(), RoundLimiter()
    went: list[tuple[int, int]] = []

    async def go(number: int) -> None:
        await limiter.wait()
        went.append((rounds.count, number))

    tasks = 10 * TASKS_PER_ROUND
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(go, number)
            await wait_all_tasks_blocked()  # so that they come in this order
    assert len(went) == tasks

    went.clear()
    trio.lowlevel.add_instrument(rounds)
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(go, number)
    trio.lowlevel.remove_instrument(rounds)
    in_round = [sum(at == each for at, _ in went) for each in range(rounds.count + 1)]
    assert sum(in_round) == tasks
    assert max(in_round) <= TASKS_PER_ROUND


async def test_a_task_that_gives_up_takes_no_place() -> None:
    limiter, went = RoundLimiter(), []

    async def go(scope: trio.CancelScope) -> None:
        with scope:
            await limiter.wait()
            went.append(scope)

    scopes = [trio.CancelScope() for _ in range(3 * TASKS_PER_ROUND)]
    for scope in scopes[TASKS_PER_ROUND : 2 * TASKS_PER_ROUND]:
        scope.cancel()
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(go, scope)
    kept = [scope for scope in scopes if not scope.cancel_called]
    assert all(scope in went for scope in kept)
