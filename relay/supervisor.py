"""Runs the services that the connections lean on, and starts them again when they fail. Floor 4."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import structlog
import trio
from attrs import define, field

FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 10.0
HEALTHY_AFTER = 30.0
"""Seconds of running after which the next failure counts as the first."""

log = structlog.get_logger()


class Service(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[None]) -> object:
        """Work until cancelled; ready when `task_status` says so."""


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    """Waits to be started again."""


@define(eq=False)
class Supervised:
    """One service and how it fares."""

    service: Service
    state: State = State.STARTING
    restarts: int = 0


@define(eq=False)
class Supervisor:
    """The nursery of the services."""

    _given: Mapping[str, Service]
    _dispensable: frozenset[str] = frozenset()
    """The names of those without which there is traffic all the same."""
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
                await self._run_once(supervised)
            except* Exception:  # whatever a service fails with, it is started again
                log.exception("service failed", service=name)
            else:
                log.error("service ended", service=name)
            supervised.state = State.FAILED
            supervised.restarts += 1
            if trio.current_time() - started >= HEALTHY_AFTER:
                backoff = FIRST_BACKOFF
            await trio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def _run_once(self, supervised: Supervised) -> None:
        supervised.state = State.STARTING
        async with trio.open_nursery() as nursery:
            await nursery.start(supervised.service.run)
            supervised.state = State.RUNNING
