"""Tasks that fail are started again, ever more slowly, and how they fare can be seen."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.concurrency.batcher import Batcher
from relay.concurrency.progress import Progress
from relay.concurrency.supervisor import (
    HEALTHY_AFTER,
    MAX_BACKOFF,
    PROGRESS_TIMEOUT,
    Supervisor,
    TaskState,
)
from relay.errors import StoreUnavailable

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
    """Make a life that is ready after `ready` seconds, and goes on with `then` after some more."""

    async def life(status: Started) -> None:
        await trio.sleep(ready)
        status.started()
        await trio.sleep(seconds)
        await then(trio.TASK_STATUS_IGNORED)

    return life


@define(eq=False)
class ScriptedTask:
    """A supervised task that lives the given lives, the last one again and again."""

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
async def supervise(**tasks: ScriptedTask) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tasks)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "life",
    [crash, fail_before_ready, end, end_before_ready, fail_in_a_group],
    ids=lambda f: f.__name__,
)
async def test_a_task_that_does_not_last_is_started_again_ever_more_slowly(life: Life) -> None:
    task = ScriptedTask([life])
    async with supervise(task=task) as supervisor:
        await trio.sleep(60)
        assert task.waits[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
        assert set(task.waits[7:]) == {MAX_BACKOFF}
        assert supervisor.tasks["task"].restarts == len(task.starts)
        assert not supervisor.ready


async def test_after_a_long_healthy_life_it_is_started_again_at_once() -> None:
    long = after(HEALTHY_AFTER, crash)
    task = ScriptedTask([crash, crash, crash, long, crash, healthy])
    async with supervise(task=task):
        await trio.sleep(100)
        assert task.waits == [0.1, 0.2, 0.4, HEALTHY_AFTER + 0.1, 0.2]


async def test_a_short_life_does_not_count_as_healthy() -> None:
    task = ScriptedTask([crash, crash, after(HEALTHY_AFTER - 1, crash), healthy])
    async with supervise(task=task):
        await trio.sleep(100)
        assert task.waits == [0.1, 0.2, HEALTHY_AFTER - 1 + 0.4]


async def test_its_state_tells_how_it_fares() -> None:
    task = ScriptedTask([after(2, crash, ready=1), after(2, end, ready=1), healthy])
    start = trio.current_time()
    async with supervise(task=task) as supervisor:
        supervised, states = supervisor.tasks["task"], []
        for moment in (0.5, 1.5, 3.05, 3.5, 4.5, 6.2, 6.4):
            await trio.sleep_until(start + moment)
            states.append((supervised.state, supervised.restarts, supervisor.ready))
    assert states == [
        (TaskState.STARTING, 0, False),
        (TaskState.RUNNING, 0, True),
        (TaskState.FAILED, 1, False),
        (TaskState.STARTING, 1, False),
        (TaskState.RUNNING, 1, True),
        (TaskState.FAILED, 2, False),
        (TaskState.RUNNING, 2, True),
    ]


async def test_it_is_ready_when_all_tasks_run() -> None:
    late = ScriptedTask([after(100, healthy, ready=5)])
    async with supervise(first=ScriptedTask([healthy]), second=late) as supervisor:
        await trio.sleep(1)
        assert not supervisor.ready
        await trio.sleep(5)
        assert supervisor.ready


async def test_an_optional_task_is_not_waited_for_and_its_state_tells() -> None:
    tasks = {"steady": ScriptedTask([healthy]), "audit": ScriptedTask([crash])}
    supervisor = Supervisor(tasks, optional=frozenset({"audit"}))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await trio.sleep(1)
        assert supervisor.ready
        assert supervisor.tasks["audit"].state is TaskState.FAILED
        nursery.cancel_scope.cancel()


async def test_one_that_fails_for_ever_disturbs_no_other() -> None:
    steady, failing = ScriptedTask([healthy]), ScriptedTask([crash])
    async with supervise(steady=steady, failing=failing) as supervisor:
        await trio.sleep(1000)
        assert len(steady.starts) == 1
        assert supervisor.tasks["steady"].state is TaskState.RUNNING


@pytest.mark.parametrize("moment", [0.05, 0.5, 5])
async def test_it_ends_when_cancelled_whatever_its_tasks_do(moment: float) -> None:
    async def stubborn(status: Started) -> None:
        status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("a bug in the clean-up")

    tasks = [ScriptedTask([life]) for life in (healthy, crash, end, fail_before_ready, stubborn)]
    start = trio.current_time()
    with trio.move_on_after(moment) as scope:
        await Supervisor({str(number): each for number, each in enumerate(tasks)}).run()
    assert scope.cancelled_caught
    assert trio.current_time() == start + moment


# -- tasks that hang


async def never_ready(_status: Started) -> None:
    await trio.sleep_forever()


@define(eq=False)
class WorkingTask:
    """Works for each of these durations, one a minute, and then waits for work."""

    durations: Sequence[float]
    progress: Progress = field(factory=Progress)
    done: list[float] = field(factory=list)
    """When work ended."""
    lives: int = 0

    async def run(self, **options: Started) -> None:
        options["task_status"].started()
        self.lives += 1
        for duration in self.durations[len(self.done) :]:
            await trio.sleep(60)
            with self.progress:
                await trio.sleep(duration if self.lives == 1 else 0)
            self.done.append(trio.current_time())
        await trio.sleep_forever()


@asynccontextmanager
async def watch_over(task: Any) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor({"task": task})
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


async def test_a_start_that_never_becomes_ready_is_cancelled_and_tried_again() -> None:
    task = ScriptedTask([never_ready, never_ready, healthy])
    async with supervise(task=task) as supervisor:
        await trio.sleep(10 * PROGRESS_TIMEOUT)
        # So long a start was no quick failure, so each next one comes soon.
        assert task.waits == [PROGRESS_TIMEOUT + 0.1, PROGRESS_TIMEOUT + 0.1]
        assert supervisor.ready


async def test_work_without_progress_is_ended_and_the_task_goes_on() -> None:
    working = WorkingTask([1, math.inf, 1])
    async with watch_over(working) as supervisor:
        await trio.sleep(
            120 + PROGRESS_TIMEOUT
        )  # the second piece of work begins one second after the minutes
        assert (working.lives, supervisor.ready) == (1, True)
        await trio.sleep(2)
        assert (working.lives, supervisor.tasks["task"].restarts) == (2, 1)
        await trio.sleep(200)
        assert len(working.done) == 3
        assert supervisor.ready


async def test_work_may_follow_work_and_may_be_long_in_coming() -> None:
    working = WorkingTask([PROGRESS_TIMEOUT - 1] * 10)
    async with watch_over(working) as supervisor:
        await trio.sleep(3600)
        assert (working.lives, len(working.done)) == (1, 10)
        assert supervisor.ready


@define(eq=False)
class UncancellableTask(WorkingTask):
    """Does not end when cancelled, in its first life."""

    async def run(self, **options: Started) -> None:
        options["task_status"].started()
        self.lives += 1
        if self.lives == 1:
            with self.progress, trio.CancelScope(shield=True):
                await trio.sleep(2 * PROGRESS_TIMEOUT)
        await trio.sleep_forever()


async def test_a_task_that_does_not_even_end_can_be_seen_to_be_stuck() -> None:
    uncancellable = UncancellableTask([])
    async with watch_over(uncancellable) as supervisor:
        supervised, states = supervisor.tasks["task"], []
        for _ in range(4):
            await trio.sleep(PROGRESS_TIMEOUT / 2 + 0.1)
            states.append((supervised.state, supervisor.ready))
    stuck = (TaskState.STUCK, False)
    assert states == [(TaskState.RUNNING, True), stuck, stuck, (TaskState.RUNNING, True)]
    assert uncancellable.lives == 2


async def test_a_request_to_a_task_that_hangs_fails_and_the_next_is_served() -> None:
    hangs = [True]

    async def answer(questions: Sequence[int]) -> list[int]:
        if hangs.pop():
            await trio.sleep_forever()
        return list(questions)

    batcher = Batcher(answer)
    async with watch_over(batcher):
        with pytest.raises(StoreUnavailable), trio.fail_after(3 * PROGRESS_TIMEOUT):
            await batcher.ask(1)
        hangs.append(False)
        assert await batcher.ask(2) == 2


async def test_a_request_to_a_task_that_crashes_fails_and_the_next_is_served() -> None:
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


async def test_it_has_settled_when_all_required_tasks_have_been_ready_or_have_failed() -> None:
    quick, slow = ScriptedTask([healthy]), ScriptedTask([after(100, healthy, ready=3)])
    broken, never = (
        ScriptedTask([fail_before_ready]),
        ScriptedTask([after(100, healthy, ready=math.inf)]),
    )
    supervisor = Supervisor(
        {"quick": quick, "slow": slow, "broken": broken, "never": never},
        optional=frozenset({"never"}),
    )
    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        await nursery.start(supervisor.run)
        await supervisor.settle()
        assert trio.current_time() - start == pytest.approx(3)
        assert supervisor.tasks["slow"].state is TaskState.RUNNING
        nursery.cancel_scope.cancel()
