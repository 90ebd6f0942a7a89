"""Services that fail are started again, ever more slowly, and how they fare can be seen."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.batching import Batcher
from relay.errors import StoreUnavailable
from relay.supervisor import HEALTHY_AFTER, LONGEST_BACKOFF, PATIENCE, State, Supervisor
from relay.turns import Turn

pytestmark = pytest.mark.mock_clock

Started = trio.TaskStatus[None]
Life = Callable[[Started], Awaitable[None]]


async def healthy(status: Started) -> None:
    status.started()
    await trio.sleep_forever()


async def crash(status: Started) -> None:
    status.started()
    raise RuntimeError("a bug")


async def fail_before_ready(_status: Started) -> None:
    raise StoreUnavailable


async def end(status: Started) -> None:
    status.started()


async def end_before_ready(_status: Started) -> None:
    pass


async def fail_in_a_group(status: Started) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash, trio.TASK_STATUS_IGNORED)
        status.started()


def after(seconds: float, then: Life, *, ready: float = 0) -> Life:
    """A life that is ready after a while, and goes on so many seconds later."""

    async def life(status: Started) -> None:
        await trio.sleep(ready)
        status.started()
        await trio.sleep(seconds)
        await then(trio.TASK_STATUS_IGNORED)

    return life


@define(eq=False)
class Service:
    """Lives the lives that it is given, the last one again and again."""

    lives: Sequence[Life]
    starts: list[float] = field(factory=list)

    async def run(self, **options: Started) -> None:
        life = self.lives[min(len(self.starts), len(self.lives) - 1)]
        self.starts.append(trio.current_time())
        await life(options["task_status"])

    @property
    def waits(self) -> list[float]:
        """Seconds between the starts."""
        pairs = zip(self.starts, self.starts[1:], strict=False)
        return [round(later - earlier, 3) for earlier, later in pairs]


@asynccontextmanager
async def supervise(**services: Service) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(services)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "life",
    [crash, fail_before_ready, end, end_before_ready, fail_in_a_group],
    ids=lambda f: f.__name__,
)
async def test_a_service_that_does_not_last_is_started_again_ever_more_slowly(life: Life) -> None:
    service = Service([life])
    async with supervise(service=service) as supervisor:
        await trio.sleep(60)
        assert service.waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
        assert set(service.waits[7:]) == {LONGEST_BACKOFF}
        assert supervisor.services["service"].restarts == len(service.starts)
        assert not supervisor.ready


async def test_after_a_long_healthy_life_it_is_started_again_at_once() -> None:
    long = after(HEALTHY_AFTER, crash)
    service = Service([crash, crash, crash, long, crash, healthy])
    async with supervise(service=service):
        await trio.sleep(100)
        assert service.waits == [0.1, 0.2, 0.4, HEALTHY_AFTER + 0.1, 0.2]


async def test_a_short_life_does_not_count_as_healthy() -> None:
    service = Service([crash, crash, after(HEALTHY_AFTER - 1, crash), healthy])
    async with supervise(service=service):
        await trio.sleep(100)
        assert service.waits == [0.1, 0.2, HEALTHY_AFTER - 1 + 0.4]


async def test_its_state_tells_how_it_fares() -> None:
    service = Service([after(2, crash, ready=1), after(2, end, ready=1), healthy])
    start = trio.current_time()
    async with supervise(service=service) as supervisor:
        supervised, states = supervisor.services["service"], []
        for moment in (0.5, 1.5, 3.05, 3.5, 4.5, 6.2, 6.4):
            await trio.sleep_until(start + moment)
            states.append((supervised.state, supervised.restarts, supervisor.ready))
    assert states == [
        (State.STARTING, 0, False),
        (State.RUNNING, 0, True),
        (State.FAILED, 1, False),
        (State.STARTING, 1, False),
        (State.RUNNING, 1, True),
        (State.FAILED, 2, False),
        (State.RUNNING, 2, True),
    ]


async def test_all_have_to_run_for_the_whole_to_be_ready() -> None:
    late = Service([after(100, healthy, ready=5)])
    async with supervise(first=Service([healthy]), second=late) as supervisor:
        await trio.sleep(1)
        assert not supervisor.ready
        await trio.sleep(5)
        assert supervisor.ready


async def test_what_can_be_done_without_is_not_waited_for_and_its_state_tells() -> None:
    services = {"steady": Service([healthy]), "audit": Service([crash])}
    supervisor = Supervisor(services, dispensable=frozenset({"audit"}))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(1)
        assert supervisor.ready
        assert supervisor.services["audit"].state is State.FAILED
        nursery.cancel_scope.cancel()


async def test_one_that_fails_for_ever_disturbs_no_other() -> None:
    steady, failing = Service([healthy]), Service([crash])
    async with supervise(steady=steady, failing=failing) as supervisor:
        await trio.sleep(1000)
        assert len(steady.starts) == 1
        assert supervisor.services["steady"].state is State.RUNNING


@pytest.mark.parametrize("moment", [0.05, 0.5, 5])
async def test_it_ends_when_cancelled_whatever_its_services_do(moment: float) -> None:
    async def stubborn(status: Started) -> None:
        status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("a bug in the clean-up")

    services = [Service([life]) for life in (healthy, crash, end, fail_before_ready, stubborn)]
    start = trio.current_time()
    with trio.move_on_after(moment) as scope:
        await Supervisor({str(number): each for number, each in enumerate(services)}).run()
    assert scope.cancelled_caught
    assert trio.current_time() == start + moment


# -- services that hang


async def never_ready(_status: Started) -> None:
    await trio.sleep_forever()


@define(eq=False)
class Worker:
    """Takes a turn for each of these durations, one a minute, and then waits for work."""

    durations: Sequence[float]
    turn: Turn = field(factory=Turn)
    done: list[float] = field(factory=list)
    """When turns ended."""
    lives: int = 0

    async def run(self, **options: Started) -> None:
        options["task_status"].started()
        self.lives += 1
        for duration in self.durations[len(self.done) :]:
            await trio.sleep(60)
            with self.turn:
                await trio.sleep(duration if self.lives == 1 else 0)
            self.done.append(trio.current_time())
        await trio.sleep_forever()


@asynccontextmanager
async def watch_over(service: Any) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor({"service": service})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


async def test_a_start_that_never_becomes_ready_is_given_up_and_tried_again() -> None:
    service = Service([never_ready, never_ready, healthy])
    async with supervise(service=service) as supervisor:
        await trio.sleep(10 * PATIENCE)
        # So long a start was no quick failure, so each next one comes soon.
        assert service.waits == [PATIENCE + 0.1, PATIENCE + 0.1]
        assert supervisor.ready


async def test_a_turn_that_gets_nowhere_is_ended_and_the_service_goes_on() -> None:
    worker = Worker([1, math.inf, 1])
    async with watch_over(worker) as supervisor:
        await trio.sleep(120 + PATIENCE)  # the second turn begins one second after the minutes
        assert (worker.lives, supervisor.ready) == (1, True)
        await trio.sleep(2)
        assert (worker.lives, supervisor.services["service"].restarts) == (2, 1)
        await trio.sleep(200)
        assert len(worker.done) == 3
        assert supervisor.ready


async def test_turns_may_follow_one_another_and_work_may_be_long_in_coming() -> None:
    worker = Worker([PATIENCE - 1] * 10)
    async with watch_over(worker) as supervisor:
        await trio.sleep(3600)
        assert (worker.lives, len(worker.done)) == (1, 10)
        assert supervisor.ready


@define(eq=False)
class Deaf(Worker):
    """Does not end when told to, in its first life."""

    async def run(self, **options: Started) -> None:
        options["task_status"].started()
        self.lives += 1
        if self.lives == 1:
            with self.turn, trio.CancelScope(shield=True):
                await trio.sleep(2 * PATIENCE)
        await trio.sleep_forever()


async def test_a_service_that_does_not_even_end_can_be_seen_to_be_stuck() -> None:
    deaf = Deaf([])
    async with watch_over(deaf) as supervisor:
        supervised, states = supervisor.services["service"], []
        for _ in range(4):
            await trio.sleep(PATIENCE / 2 + 0.1)
            states.append((supervised.state, supervisor.ready))
    stuck = (State.STUCK, False)
    assert states == [(State.RUNNING, True), stuck, stuck, (State.RUNNING, True)]
    assert deaf.lives == 2


async def test_who_waits_for_a_service_that_hangs_is_told_and_the_next_is_answered() -> None:
    hangs = [True]

    async def answer(questions: Sequence[int]) -> list[int]:
        if hangs.pop():
            await trio.sleep_forever()
        return list(questions)

    batcher = Batcher(answer)
    async with watch_over(batcher):
        with pytest.raises(StoreUnavailable), trio.fail_after(3 * PATIENCE):
            await batcher.ask(1)
        hangs.append(False)
        assert await batcher.ask(2) == 2


async def test_who_waits_for_a_service_that_crashes_is_told_and_the_next_is_answered() -> None:
    asked: list[list[int]] = []

    async def answer(questions: Sequence[int]) -> list[int]:
        asked.append(list(questions))
        await trio.sleep(1)
        if len(asked) == 1:
            raise RuntimeError("a bug")
        return list(questions)

    batcher = Batcher(answer)
    async with trio.open_nursery() as nursery:
        await nursery.start(Supervisor({"batcher": batcher}).run)
        with pytest.raises(StoreUnavailable):
            await batcher.ask(1)
        assert await batcher.ask(2) == 2
        assert asked == [[1], [2]]
        nursery.cancel_scope.cancel()


async def test_it_has_settled_when_all_that_count_have_been_ready_or_have_failed() -> None:
    quick, slow = Service([healthy]), Service([after(100, healthy, ready=3)])
    broken, never = Service([fail_before_ready]), Service([after(100, healthy, ready=math.inf)])
    supervisor = Supervisor(
        {"quick": quick, "slow": slow, "broken": broken, "never": never},
        dispensable=frozenset({"never"}),
    )
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        await nursery.start(supervisor.run)
        await supervisor.settle()
        assert trio.current_time() - start == pytest.approx(3)
        assert supervisor.services["slow"].state is State.RUNNING
        nursery.cancel_scope.cancel()
