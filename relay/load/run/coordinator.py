"""Coordinates a run: starts the target and the workers, collects what they saw, ends them.

Each phase is nested in the one before. However the run ends, the workers end first, then the relay.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial

import trio
from attrs import define, field, frozen

from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.endpoint import Endpoint
from relay.load.actors.engine import Share
from relay.load.run.cluster_probe import check_cluster
from relay.load.run.run_state import RunState
from relay.load.run.target_reports import TargetFailed
from relay.load.run.targets import Targets, open_targets
from relay.load.run.tokens import find_endpoint, find_operator_token
from relay.load.run.worker import Assignment, StartSignal
from relay.load.run.worker_process import (
    RunFailed,
    WorkerProcess,
    open_worker,
    raise_open_files,
)
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schema import ScenarioError

START_DELAY = 0.3
"""Seconds from the start signal to the start, so that all workers have received it."""
UPDATE_DELAY = 0.2
"""Seconds after which the workers' updates of a second have arrived."""
READY_TIMEOUT = 60.0
LEAVE_TIMEOUT = 20.0
"""Seconds after the end of the run in which the workers must end."""
LEDGER_TIMEOUT = 3.0
"""Seconds in which the relay's ledger must agree, after all clients have left."""
LEDGER_POLL_INTERVAL = 0.2
MIN_FAILED_SECONDS = 2
"""Consecutive seconds in which a check must fail before the run is aborted."""


@frozen(kw_only=True)
class RunOptions:
    """Options from the command line."""

    target_is_mine: bool = False
    abort_on_fail: bool = False


@define(eq=False)
class Coordinator:
    """Runs one scenario and fills `state`."""

    scenario: Scenario
    options: RunOptions
    source: str
    """The scenario, as TOML."""
    file: str
    state: RunState = field(init=False)
    _targets: Targets | None = None
    _stop: trio.Event | None = None
    """Set to let the workers leave early."""
    _failed_seconds: int = 0

    def __attrs_post_init__(self) -> None:
        self.state = RunState(self.scenario)

    async def run(self) -> None:
        """Run the scenario to its end. Failures are in `state`; only `ScenarioError` is raised."""
        raise_open_files()
        running = trio.CancelScope()
        try:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stop_at_signal, signals, running, nursery.cancel_scope)
                    with running:
                        await self._run()
                    nursery.cancel_scope.cancel()
        except* ScenarioError as errors:
            wrong = next(leaves(errors))
            raise ScenarioError(f"{self.file}: {wrong.where}", wrong.problem) from None
        except* RelayError as errors:
            self.state.failure = str(next(leaves(errors)))
        self.state.conclude()

    async def _stop_at_signal(
        self, signals: AsyncIterator[int], running: trio.CancelScope, everything: trio.CancelScope
    ) -> None:
        """The first signal lets the workers leave, the second ends everything at once."""
        await anext(signals)
        self.state.interrupted = True
        if self.state.phase == "running" and self._stop is not None:
            self.state.phase = "interrupted"
            self._stop.set()
        else:
            running.cancel()
        await anext(signals)
        everything.cancel()

    async def _run(self) -> None:
        state, number = self.state, self.scenario.workers
        async with open_targets(self.scenario, is_mine=self.options.target_is_mine) as targets:
            self._targets = targets
            state.phase = "making tokens"
            endpoint = await find_endpoint(self.scenario, targets)
            await self._prepare(targets, endpoint)
            state.phase = "starting workers"
            async with AsyncExitStack() as stack:
                workers = [
                    await stack.enter_async_context(
                        open_worker(self._assignment(endpoint, Share(worker=worker, of=number)))
                    )
                    for worker in range(number)
                ]
                await self._play(workers, targets)
            if self.scenario.checks_ledger:
                await self._check_ledger(targets)

    async def _prepare(self, targets: Targets, endpoint: Endpoint) -> None:
        """See that several targets are one cluster, and what each has counted so far."""
        several = list(targets.by_name.values())
        if len(several) > 1:
            self.state.phase = "trying the targets"
            await check_cluster(endpoint, self.state.run_id)
            token = await find_operator_token(self.scenario, targets)
            for each in several:
                each.operator_token = token
        if self.scenario.checks_ledger:
            for each in several:
                await each.begin()

    async def _play(self, workers: Sequence[WorkerProcess], targets: Targets) -> None:
        with trio.move_on_after(READY_TIMEOUT) as waiting:
            for worker in workers:
                await worker.ready()
        if waiting.cancelled_caught:
            raise RunFailed(f"the workers were not ready in {READY_TIMEOUT:g} s")
        start = StartSignal(time.monotonic() + START_DELAY)
        self._stop = trio.Event()
        self.state.phase = "running"
        begun = trio.current_time() + START_DELAY
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_workers, workers, self._stop)
            nursery.start_soon(self._end_each_second, begun)
            nursery.start_soon(targets.poll)
            nursery.start_soon(self._act_on_targets, targets, begun)
            async with trio.open_nursery() as playing:
                for number, worker in enumerate(workers):
                    playing.start_soon(self._collect, number, worker, start)
            nursery.cancel_scope.cancel()
        self._end_second(trio.current_time() - begun)

    async def _collect(self, number: int, worker: WorkerProcess, start: StartSignal) -> None:
        length = self.scenario.length + self.scenario.grace + START_DELAY
        with trio.move_on_after(length + LEAVE_TIMEOUT) as waiting:
            async for message in worker.play(start):
                if message.update is not None:
                    self.state.add(number, message.update)
        if waiting.cancelled_caught:
            raise RunFailed("a worker does not end")

    async def _act_on_targets(self, targets: Targets, begun: float) -> None:
        """Drain and restart targets as the stages have it."""

        def note(name: str, words: str) -> None:
            self.state.note(trio.current_time() - begun, f"{name} {words}")

        for name, each in targets.by_name.items():
            each.on_change = partial(note, name)
        at = begun
        for stage in self.scenario.stages:
            await trio.sleep_until(at)
            async with trio.open_nursery() as nursery:
                for name in stage.drain:
                    nursery.start_soon(targets.by_name[name].drain)
                for name in stage.restart:
                    nursery.start_soon(targets.by_name[name].restart)
            at += stage.duration

    async def _stop_workers(self, workers: Sequence[WorkerProcess], stop: trio.Event) -> None:
        await stop.wait()
        for worker in workers:
            await worker.stop()

    async def _end_each_second(self, begun: float) -> None:
        at = 0.0
        while True:
            at += 1
            await trio.sleep_until(begun + at + UPDATE_DELAY)
            self._end_second(at)
            if self.options.abort_on_fail or self.scenario.abort_on_fail:
                self._abort_if_failed()

    def _end_second(self, at: float) -> None:
        self.state.end_second(at, self._targets.usage() if self._targets else {})

    def _abort_if_failed(self) -> None:
        failed = self.state.failed_check()
        self._failed_seconds = self._failed_seconds + 1 if failed else 0
        if self._failed_seconds >= MIN_FAILED_SECONDS and self._stop is not None:
            self.state.aborted_by = failed
            self._stop.set()

    async def _check_ledger(self, targets: Targets) -> None:
        """Compare until the ledger agrees: a relay may notice later that clients have left."""
        state = self.state
        state.phase = "settling"
        end = trio.current_time() + LEDGER_TIMEOUT
        try:
            while True:
                state.compare_ledger([await each.ledger() for each in targets.by_name.values()])
                if all(each.agrees for each in state.ledger) or trio.current_time() > end:
                    break
                await trio.sleep(LEDGER_POLL_INTERVAL)
        except TargetFailed as failure:  # what the clients saw remains true
            state.ledger_failure = str(failure)

    def _assignment(self, endpoint: Endpoint, share: Share) -> Assignment:
        folder = str(self.scenario.folder.resolve())
        return Assignment(self.source, self.file, folder, self.state.run_id, endpoint, share)
