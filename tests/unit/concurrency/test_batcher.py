"""Requests that wait together are served together, and none waits for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.concurrency.batcher import MAX_WAITING, Batcher, _Pending
from relay.errors import StoreRejects, StoreUnavailable

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Store:
    """Doubles numbers, a second for each batch, and keeps what it was asked."""

    calls: list[list[int]] = field(factory=list)
    failure: Callable[[], BaseException] | None = None
    answer: Callable[[Sequence[int]], list[int]] = field(
        default=lambda numbers: [2 * number for number in numbers]
    )

    async def double(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        await trio.sleep(1)
        if self.failure is not None:
            raise self.failure()
        return self.answer(numbers)


@define(eq=False)
class Askers:
    """Tasks that ask, and the results."""

    batcher: Batcher[int, int]
    nursery: trio.Nursery
    answers: dict[int, int | str] = field(factory=dict)

    async def ask(self, *numbers: int) -> None:
        """Ask for all of them at one moment, each in a task of its own, in this order."""
        for number in numbers:
            self.nursery.start_soon(self._ask, number)
            await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, number: int) -> None:
        try:
            self.answers[number] = await self.batcher.ask(number)
        except StoreUnavailable:
            self.answers[number] = "unavailable"
        except StoreRejects:
            self.answers[number] = "rejected"


@asynccontextmanager
async def open_askers(batcher: Batcher[int, int]) -> AsyncIterator[Askers]:
    async with trio.open_nursery() as nursery:
        yield Askers(batcher, nursery)
        nursery.cancel_scope.cancel()


async def test_requests_that_wait_together_are_served_in_one_call() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        await askers.nursery.start(batcher.run)
        await trio.sleep(1.1)
        assert store.calls == [[1, 2, 3]]
        assert askers.answers == {1: 2, 2: 4, 3: 6}


async def test_requests_that_arrive_during_a_call_are_in_the_next_one() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.nursery.start(batcher.run)
        await askers.ask(1)
        await askers.ask(2)
        await askers.ask(3)
        await trio.sleep(5)
        assert store.calls == [[1], [2, 3]]
        assert askers.answers == {1: 2, 2: 4, 3: 6}


async def test_a_batch_has_a_largest_size() -> None:
    store = Store()
    batcher = Batcher(store.double, max_batch=10)
    async with open_askers(batcher) as askers:
        await askers.ask(*range(25))
        await askers.nursery.start(batcher.run)
        await trio.sleep(5)
        assert [len(call) for call in store.calls] == [10, 10, 5]
        assert askers.answers == {number: 2 * number for number in range(25)}


async def test_no_more_requests_are_held_than_may_wait() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        for number in range(MAX_WAITING + 500):
            askers.nursery.start_soon(askers._ask, number)
        await trio.testing.wait_all_tasks_blocked()
        statistics = batcher._put.statistics()
        assert statistics.current_buffer_used == MAX_WAITING
        assert statistics.tasks_waiting_send == 500
        await askers.nursery.start(batcher.run)
        await trio.sleep(10)
        assert sorted(askers.answers) == list(range(MAX_WAITING + 500))
        assert sum(len(call) for call in store.calls) == MAX_WAITING + 500


async def test_an_abandoned_request_is_not_served() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.nursery.start(batcher.run)
        await askers.ask(1)
        with trio.move_on_after(0.5):
            await batcher.ask(2)
        await askers.ask(3)
        await trio.sleep(5)
        assert store.calls == [[1], [3]]
        assert askers.answers == {1: 2, 3: 6}


async def test_a_batch_of_abandoned_requests_makes_no_call() -> None:
    store = Store()
    batcher = Batcher(store.double)
    with trio.move_on_after(1):
        await batcher.ask(1)
    async with open_askers(batcher) as askers:
        await askers.nursery.start(batcher.run)
        await trio.sleep(5)
        assert store.calls == []


async def test_a_request_abandoned_during_its_call_fails_no_other() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2)
        await askers.nursery.start(batcher.run)
        with trio.move_on_after(0.5):
            await batcher.ask(3)
        await trio.sleep(5)
        assert askers.answers == {1: 2, 2: 4}


@pytest.mark.parametrize("bad", [{0}, {4}, {0, 7}, {1, 2, 3}, set(range(8))])
async def test_requests_that_the_store_rejects_fail_no_other(bad: set[int]) -> None:
    def answer(numbers: Sequence[int]) -> list[int]:
        if bad & set(numbers):
            raise StoreRejects
        return [2 * number for number in numbers]

    batcher = Batcher(Store(answer=answer).double)
    async with open_askers(batcher) as askers:
        await askers.ask(*range(8))
        await askers.nursery.start(batcher.run)
        await trio.sleep(60)
        await askers.ask(9)
        await trio.sleep(5)
        expected: dict[int, int | str] = {
            number: "rejected" if number in bad else 2 * number for number in range(8)
        }
        assert askers.answers == {**expected, 9: 18}


async def test_requests_are_answered_before_others_of_their_batch_are_tried_again() -> None:
    calls = 0

    def answer(numbers: Sequence[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if len(numbers) == 2:
            raise StoreRejects
        if numbers[0] == 2:
            raise StoreUnavailable
        return [2 * number for number in numbers]

    batcher = Batcher(Store(answer=answer).double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2)
        await askers.nursery.start(batcher.run)
        await trio.sleep(5)
        assert askers.answers == {1: 2, 2: "unavailable"}
        assert calls == 3


async def test_an_unavailable_store_fails_all_that_wait_and_the_task_goes_on() -> None:
    store = Store(failure=StoreUnavailable)
    batcher = Batcher(store.double, max_batch=2)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        await askers.nursery.start(batcher.run)
        await askers.ask(4)
        await trio.sleep(1.1)
        # Also those outside the call, which would get the same result.
        assert askers.answers == dict.fromkeys((1, 2, 3, 4), "unavailable")
        store.failure = None
        assert await batcher.ask(5) == 10


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
async def test_any_other_failure_fails_all_that_wait_and_ends_the_task(
    failure: type[BaseException],
) -> None:
    store = Store(failure=failure)
    batcher = Batcher(store.double, max_batch=2)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        with pytest.raises(failure):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == dict.fromkeys((1, 2, 3), "unavailable")
        # A request made now waits for the task to be started again.
        await askers.ask(4)
        store.failure = None
        await askers.nursery.start(batcher.run)
        await trio.sleep(2)
        assert askers.answers[4] == 8


@pytest.mark.parametrize("wrong", [[2], [2, 4, 6, 8], []])
async def test_results_that_do_not_match_the_requests_are_given_to_none(wrong: list[int]) -> None:
    store = Store(answer=lambda _numbers: wrong)
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        with pytest.raises(ValueError, match="zip"):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == dict.fromkeys((1, 2, 3), "unavailable")


async def test_cancelling_it_leaves_no_request_waiting() -> None:
    batcher = Batcher(Store().double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2)
        with trio.move_on_after(0.5):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == {1: "unavailable", 2: "unavailable"}


async def test_a_request_does_not_show_in_its_repr() -> None:
    assert "5ecret" not in repr(_Pending("5ecret"))
