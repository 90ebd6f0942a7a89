"""Runs the long-lived tasks that connections depend on, and starts them again when they fail.

A task that hangs has failed too: its start has a deadline, and so has each piece of work whose
progress it reports. Tasks may wait for work without end, so silence alone means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable

import structlog
import trio
from attrs import define, field

from relay.concurrency.backoff import Backoff
from relay.concurrency.progress import Progress

FIRST_BACKOFF = 0.1
MAX_BACKOFF = 10.0
HEALTHY_AFTER = 30.0
"""Seconds of running after which the next failure counts as the first."""
PROGRESS_TIMEOUT = 30.0
"""Seconds for a start, and for a piece of work, without what the store takes."""

log = structlog.get_logger()


class SupervisedTask(Protocol):
    """A task that the supervisor runs."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> object:
        """Work until cancelled; ready when `task_status` says so."""


@runtime_checkable
class ReportsProgress(Protocol):
    """A supervised task that shows when it is at work."""

    progress: Progress


class TaskState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STUCK = "stuck"
    """It was cancelled because it made no progress, and has not ended."""
    FAILED = "failed"
    """It waits to be started again."""


class Stuck(Exception):
    """A task makes no progress."""


@define(eq=False, repr=False)
class TaskHealth:
    """A supervised task and how it fares."""

    task: SupervisedTask
    phase: TaskState = TaskState.STARTING
    stuck: bool = False
    restarts: int = 0
    settled: trio.Event = field(factory=trio.Event)
    """Set once the task has been ready, or has failed."""

    @property
    def state(self) -> TaskState:
        return TaskState.STUCK if self.stuck else self.phase


@define(eq=False, repr=False)
class Supervisor:
    """Runs tasks by name."""

    _given: Mapping[str, SupervisedTask]
    _optional: frozenset[str] = frozenset()
    """The names of tasks without which relay is ready all the same."""
    _timeout: float = PROGRESS_TIMEOUT
    """Seconds for a start, and for a piece of work."""
    tasks: dict[str, TaskHealth] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tasks = {name: TaskHealth(task) for name, task in self._given.items()}

    @property
    def ready(self) -> bool:
        """Whether all tasks run that are not optional."""
        return all(each.state is TaskState.RUNNING for each in self._required())

    async def settle(self) -> None:
        """Wait until each task that is not optional has been ready, or has failed."""
        for each in self._required():
            await each.settled.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all tasks running until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, health in self.tasks.items():
                nursery.start_soon(self._keep_running, name, health)
            task_status.started()

    def _required(self) -> list[TaskHealth]:
        return [each for name, each in self.tasks.items() if name not in self._optional]

    async def _keep_running(self, name: str, health: TaskHealth) -> None:
        backoff = Backoff(FIRST_BACKOFF, MAX_BACKOFF)
        while True:
            started = trio.current_time()
            try:
                await self._run_once(name, health)
            except* Stuck:
                pass  # logged by _watch
            except* Exception:  # whatever a task fails with, it is started again
                log.exception("service failed", service=name)
            else:
                log.error("service ended", service=name)
            health.phase, health.stuck = TaskState.FAILED, False
            health.settled.set()
            health.restarts += 1
            if trio.current_time() - started >= HEALTHY_AFTER:
                backoff.reset()
            await trio.sleep(backoff.next())

    async def _run_once(self, name: str, health: TaskHealth) -> None:
        health.phase = TaskState.STARTING
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch, name, health)
            async with trio.open_nursery() as nursery:
                await nursery.start(health.task.run)
                health.phase = TaskState.RUNNING
                health.settled.set()
            watching.cancel_scope.cancel()

    async def _watch(self, name: str, health: TaskHealth) -> None:
        """Raise `Stuck`, which ends the task, when its start or its work takes too long."""
        await trio.sleep(self._timeout)
        if health.phase is TaskState.RUNNING:
            if not isinstance(health.task, ReportsProgress):
                return
            progress = health.task.progress
            while not progress.has_lasted(self._timeout):
                began = trio.current_time() if progress.began is None else progress.began
                await trio.sleep_until(began + self._timeout)
        health.stuck = True
        log.error(
            "service is stuck: it is ended and started again",
            service=name,
            phase=health.phase,
            seconds=self._timeout,
        )
        raise Stuck
