"""Many askers, one question: who waits together is answered together, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.batching import CAPACITY, Batcher, _Waiter
from relay.errors import StoreUnavailable

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Store:
    """Doubles numbers, a second a batch, and keeps what it was asked."""

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
    """Tasks that ask, and what came of it."""

    batcher: Batcher[int, int]
    nursery: trio.Nursery
    answers: dict[int, int | str] = field(factory=dict)

    async def ask(self, *numbers: int) -> None:
        """Ask all at one moment, each in a task of its own, in this order."""
        for number in numbers:
            self.nursery.start_soon(self._ask, number)
            await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, number: int) -> None:
        try:
            self.answers[number] = await self.batcher.ask(number)
        except StoreUnavailable:
            self.answers[number] = "unavailable"


@asynccontextmanager
async def open_askers(batcher: Batcher[int, int]) -> AsyncIterator[Askers]:
    async with trio.open_nursery() as nursery:
        yield Askers(batcher, nursery)
        nursery.cancel_scope.cancel()


async def test_who_waits_at_one_moment_is_answered_with_one_call() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        await askers.nursery.start(batcher.run)
        await trio.sleep(1.1)
        assert store.calls == [[1, 2, 3]]
        assert askers.answers == {1: 2, 2: 4, 3: 6}


async def test_who_comes_during_a_call_is_in_the_next_one() -> None:
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


async def test_a_batch_holds_so_many_at_most() -> None:
    store = Store()
    batcher = Batcher(store.double, most=10)
    async with open_askers(batcher) as askers:
        await askers.ask(*range(25))
        await askers.nursery.start(batcher.run)
        await trio.sleep(5)
        assert [len(call) for call in store.calls] == [10, 10, 5]
        assert askers.answers == {number: 2 * number for number in range(25)}


async def test_however_many_ask_no_more_than_its_capacity_is_held() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        for number in range(CAPACITY + 500):
            askers.nursery.start_soon(askers._ask, number)
        await trio.testing.wait_all_tasks_blocked()
        statistics = batcher._put.statistics()
        assert statistics.current_buffer_used == CAPACITY
        assert statistics.tasks_waiting_send == 500
        await askers.nursery.start(batcher.run)
        await trio.sleep(10)
        assert sorted(askers.answers) == list(range(CAPACITY + 500))
        assert sum(len(call) for call in store.calls) == CAPACITY + 500


async def test_who_has_gone_is_not_asked_for() -> None:
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


async def test_when_all_have_gone_nothing_is_asked() -> None:
    store = Store()
    batcher = Batcher(store.double)
    with trio.move_on_after(1):
        await batcher.ask(1)
    async with open_askers(batcher) as askers:
        await askers.nursery.start(batcher.run)
        await trio.sleep(5)
        assert store.calls == []


async def test_who_goes_while_being_answered_takes_nobody_along() -> None:
    store = Store()
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2)
        await askers.nursery.start(batcher.run)
        with trio.move_on_after(0.5):
            await batcher.ask(3)
        await trio.sleep(5)
        assert askers.answers == {1: 2, 2: 4}


async def test_the_store_away_is_told_to_all_who_wait_and_the_service_goes_on() -> None:
    store = Store(failure=StoreUnavailable)
    batcher = Batcher(store.double, most=2)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        await askers.nursery.start(batcher.run)
        await askers.ask(4)
        await trio.sleep(1.1)
        # Not only those who were in the call: the rest would wait for the same answer.
        assert askers.answers == dict.fromkeys((1, 2, 3, 4), "unavailable")
        store.failure = None
        assert await batcher.ask(5) == 10


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
async def test_any_other_failure_is_told_to_all_who_wait_and_ends_the_service(
    failure: type[BaseException],
) -> None:
    store = Store(failure=failure)
    batcher = Batcher(store.double, most=2)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        with pytest.raises(failure):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == dict.fromkeys((1, 2, 3), "unavailable")
        # Who asks now waits for the service to be started again.
        await askers.ask(4)
        store.failure = None
        await askers.nursery.start(batcher.run)
        await trio.sleep(2)
        assert askers.answers[4] == 8


@pytest.mark.parametrize("wrong", [[2], [2, 4, 6, 8], []])
async def test_answers_that_do_not_fit_the_questions_are_nobodys(wrong: list[int]) -> None:
    store = Store(answer=lambda _numbers: wrong)
    batcher = Batcher(store.double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2, 3)
        with pytest.raises(ValueError, match="zip"):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == dict.fromkeys((1, 2, 3), "unavailable")


async def test_when_it_is_cancelled_nobody_is_left_waiting() -> None:
    batcher = Batcher(Store().double)
    async with open_askers(batcher) as askers:
        await askers.ask(1, 2)
        with trio.move_on_after(0.5):
            await batcher.run()
        await trio.testing.wait_all_tasks_blocked()
        assert askers.answers == {1: "unavailable", 2: "unavailable"}


async def test_a_question_is_not_shown() -> None:
    assert "5ecret" not in repr(_Waiter("5ecret"))
