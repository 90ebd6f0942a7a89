"""One task calls at their times what many have set, and none of them harms the others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.concurrency.alarms import MAX_CANCELLED, Alarms
from relay.concurrency.supervisor import FIRST_BACKOFF, Supervisor

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Log:
    """What rang, and when."""

    start: float = field(factory=trio.current_time)
    rung: list[tuple[str, float]] = field(factory=list)
    failures: int = 0

    def of(self, name: str) -> Callable[[], None]:
        return lambda: self.rung.append((name, trio.current_time() - self.start))

    def fail(self, problem: Exception) -> None:
        assert str(problem) == "a bug"
        self.failures += 1

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.rung]


@asynccontextmanager
async def running(alarms: Alarms) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(alarms.run)
        yield
        nursery.cancel_scope.cancel()


async def test_each_alarm_rings_once_at_its_time() -> None:
    alarms, log = Alarms(), Log()
    async with running(alarms):
        for name, after in (("late", 30.0), ("early", 10.0), ("between", 20.0)):
            alarms.set(log.start + after, log.of(name), log)
            await trio.sleep(1)
        assert len(alarms) == 3
        await trio.sleep(100)
    assert log.rung == [("early", 10), ("between", 20), ("late", 30)]
    assert len(alarms) == 0


async def test_those_of_the_same_time_ring_in_the_order_in_which_they_were_set() -> None:
    alarms, log = Alarms(), Log()
    names = [str(number) for number in range(50)]
    for name in names:
        alarms.set(log.start + 5, log.of(name), log)
    async with running(alarms):
        await trio.sleep(6)
    assert log.names == names


async def test_an_alarm_whose_time_is_over_rings_as_soon_as_possible() -> None:
    alarms, log = Alarms(), Log()
    async with running(alarms):
        alarms.set(log.start - 5, log.of("past"), log)
        alarms.set(log.start, log.of("now"), log)
        await trio.testing.wait_all_tasks_blocked()
    assert log.rung == [("past", 0), ("now", 0)]


async def test_an_alarm_may_set_another() -> None:
    alarms, log = Alarms(), Log()

    def ring() -> None:
        log.of("ring")()
        if len(log.rung) < 3:
            alarms.set(trio.current_time() + 2, ring, log)

    async with running(alarms):
        alarms.set(log.start + 1, ring, log)
        await trio.sleep(100)
    assert [when for _, when in log.rung] == [1, 3, 5]


async def test_a_cancelled_alarm_does_not_ring_and_keeps_nothing() -> None:
    alarms, log = Alarms(), Log()

    class Owner(Log):
        pass

    owner = Owner()
    gone = weakref.ref(owner)
    async with running(alarms):
        alarm = alarms.set(log.start + 1000, owner.of("cancelled"), owner)
        alarms.set(log.start + 2000, log.of("other"), log)
        del owner
        alarms.cancel(alarm)
        alarms.cancel(alarm)
        alarms.cancel(None)
        gc.collect()
        assert gone() is None
        assert len(alarms) == 1
        await trio.sleep(3000)
        alarms.cancel(alarm)
        assert len(alarms) == 0
    assert log.rung == [("other", 2000)]


async def test_one_alarm_may_cancel_another_of_the_same_time() -> None:
    alarms, log = Alarms(), Log()
    async with running(alarms):
        alarms.set(log.start + 1, lambda: alarms.cancel(victim), log)
        victim = alarms.set(log.start + 1, log.of("victim"), log)
        alarms.set(log.start + 1, log.of("last"), log)
        await trio.sleep(2)
    assert log.names == ["last"]


async def test_cancelled_alarms_do_not_pile_up() -> None:
    alarms, log = Alarms(), Log()
    async with running(alarms):
        kept = [alarms.set(log.start + 1000 + each, log.of(str(each)), log) for each in range(50)]
        for number in range(10_000):
            alarms.cancel(alarms.set(log.start + 500 + number % 1000, log.of("no"), log))
            assert len(alarms._heap) <= len(kept) + MAX_CANCELLED + 1
        assert len(alarms) == 50
        await trio.sleep(2000)
    assert log.names == [str(each) for each in range(50)]
    assert alarms._cancelled == 0


async def test_an_alarm_that_raises_costs_its_owner_only() -> None:
    alarms, log, other = Alarms(), Log(), Log()

    def err() -> None:
        raise RuntimeError("a bug")

    async with running(alarms):
        alarms.set(log.start + 1, err, log)
        alarms.set(log.start + 1, other.of("other"), other)
        await trio.sleep(2)
    assert (log.failures, other.failures) == (1, 0)
    assert other.names == ["other"]


async def test_a_task_that_is_started_again_has_lost_no_alarm() -> None:
    class Hopeless(Log):
        def fail(self, problem: Exception) -> None:
            raise RuntimeError("a bug that takes the task along") from problem

    alarms, log, hopeless = Alarms(), Log(), Hopeless()
    supervisor = Supervisor({"alarms": alarms})

    def err() -> None:
        raise RuntimeError("a bug")

    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await supervisor.settle()
        alarms.set(log.start + 1, err, hopeless)
        for name, after in (("same", 1.0), ("meanwhile", 1.0 + FIRST_BACKOFF / 2), ("later", 9.0)):
            alarms.set(log.start + after, log.of(name), log)
        await trio.sleep(1 + FIRST_BACKOFF / 4)
        assert not supervisor.ready
        assert log.rung == []
        alarms.set(log.start, log.of("new"), log)
        await trio.sleep(10)
        assert supervisor.ready
        nursery.cancel_scope.cancel()
    assert supervisor.tasks["alarms"].restarts == 1
    assert log.names == ["new", "same", "meanwhile", "later"]
    assert [when for _, when in log.rung] == pytest.approx([1 + FIRST_BACKOFF] * 3 + [9.0])


async def test_many_alarms_at_once_leave_others_their_turns() -> None:
    alarms, log = Alarms(), Log()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    for number in range(20_000):
        alarms.set(log.start, log.of(str(number)), log)
    done = trio.Event()
    alarms.set(log.start, done.set, log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await nursery.start(alarms.run)
        await done.wait()
        nursery.cancel_scope.cancel()
    assert len(log.rung) == 20_000
    assert turns > 5
