"""Runs the services that the connections lean on, and starts them again when they fail. Floor 4.

One that hangs has failed too: a start has a deadline, and so has each turn of a service that works
in turns. Services wait for work without end, so silence alone says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, runtime_checkable

import structlog
import trio
from attrs import define, field

from relay.turns import Turn

FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 10.0
HEALTHY_AFTER = 30.0
"""Seconds of running after which the next failure counts as the first."""
PATIENCE = 30.0
"""Seconds for a start, and for a turn, beside what the store takes."""

log = structlog.get_logger()


class Service(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[None]) -> object:
        """Work until cancelled; ready when `task_status` says so."""


@runtime_checkable
class Worker(Protocol):
    """A service that works in turns."""

    turn: Turn


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STUCK = "stuck"
    """Was told to end, because it got nowhere, and has not."""
    FAILED = "failed"
    """Waits to be started again."""


class Stuck(Exception):
    """A service gets nowhere."""


@define(eq=False)
class Supervised:
    """One service and how it fares."""

    service: Service
    phase: State = State.STARTING
    stuck: bool = False
    restarts: int = 0
    settled: trio.Event = field(factory=trio.Event)
    """Set once it has been ready, or has failed."""

    @property
    def state(self) -> State:
        return State.STUCK if self.stuck else self.phase


@define(eq=False)
class Supervisor:
    """The nursery of the services."""

    _given: Mapping[str, Service]
    _dispensable: frozenset[str] = frozenset()
    """The names of those without which there is traffic all the same."""
    _patience: float = PATIENCE
    """Seconds."""
    services: dict[str, Supervised] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.services = {name: Supervised(each) for name, each in self._given.items()}

    @property
    def ready(self) -> bool:
        return all(
            each.state is State.RUNNING
            for name, each in self.services.items()
            if name not in self._dispensable
        )

    async def settle(self) -> None:
        """Wait until each service that counts has been ready, or has failed."""
        for name, each in self.services.items():
            if name not in self._dispensable:
                await each.settled.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all services running until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, supervised in self.services.items():
                nursery.start_soon(self._keep_running, name, supervised)
            task_status.started()

    async def _keep_running(self, name: str, supervised: Supervised) -> None:
        backoff = FIRST_BACKOFF
        while True:
            started = trio.current_time()
            try:
                await self._run_once(name, supervised)
            except* Stuck:
                pass  # said when it was seen
            except* Exception:  # whatever a service fails with, it is started again
                log.exception("service failed", service=name)
            else:
                log.error("service ended", service=name)
            supervised.phase, supervised.stuck = State.FAILED, False
            supervised.settled.set()
            supervised.restarts += 1
            if trio.current_time() - started >= HEALTHY_AFTER:
                backoff = FIRST_BACKOFF
            await trio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _run_once(self, name: str, supervised: Supervised) -> None:
        supervised.phase = State.STARTING
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch, name, supervised)
            async with trio.open_nursery() as nursery:
                await nursery.start(supervised.service.run)
                supervised.phase = State.RUNNING
                supervised.settled.set()
            watching.cancel_scope.cancel()

    async def _watch(self, name: str, supervised: Supervised) -> None:
        """End a service by `Stuck` when its start or one of its turns takes too long."""
        await trio.sleep(self._patience)
        if supervised.phase is State.RUNNING:
            if not isinstance(supervised.service, Worker):
                return
            turn = supervised.service.turn
            while not turn.lasts(self._patience):
                began = trio.current_time() if turn.began is None else turn.began
                await trio.sleep_until(began + self._patience)
        supervised.stuck = True
        log.error(
            "service is stuck: it is ended and started again",
            service=name,
            phase=supervised.phase,
            seconds=self._patience,
        )
        raise Stuck
