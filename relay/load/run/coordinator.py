"""Coordinates a run: starts the target and the generators, collects what they saw, ends them.

Each phase is nested in the one before. However the run ends, the generators end first, then the
relay.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

import trio
from attrs import define, field, frozen

from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError
from relay.load.actors.engine import Share, StatsUpdate
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.sent_files import SentFiles
from relay.load.measures.process_usage import CoreTime, read_core_time
from relay.load.run.agents.agents import AgentOptions, open_agent, read_files
from relay.load.run.generator import Generator, RunFailed, assign, open_worker
from relay.load.run.processes import raise_open_files
from relay.load.run.run_state import RunState
from relay.load.run.targets.cluster_probe import check_cluster
from relay.load.run.targets.stage_meter import StageMeter
from relay.load.run.targets.target_reports import TargetFailed
from relay.load.run.targets.targets import Targets, open_targets
from relay.load.run.tokens import find_endpoint, find_operator_token
from relay.load.run.wire import Assignment
from relay.load.scenario.raising import Raise
from relay.load.scenario.scenario import BACKGROUND_NEEDS, Scenario
from relay.load.scenario.schema import ScenarioError

START_DELAY = 0.3
"""Seconds from the start signal to the start, so that all workers have received it."""
AGENT_START_DELAY = 1.5
"""The same for agents on other machines."""
UPDATE_DELAY = 0.2
"""Seconds after which the generators' updates of a second have arrived."""
AGENT_UPDATE_DELAY = 0.6
"""The same for those of agents on other machines."""
READY_TIMEOUT = 60.0
LEAVE_TIMEOUT = 20.0
"""Seconds after the end of the run in which the generators must end."""
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
    agents: AgentOptions | None = None
    """They generate the load, in place of workers of this machine."""


@define(eq=False)
class Coordinator:
    """Runs one scenario and fills `state`."""

    scenario: Scenario
    options: RunOptions
    source: str
    """The scenario, as TOML; without what is raised."""
    file: str
    raised: Raise | None = None
    """What `scenario` has more of than its source."""
    state: RunState = field(init=False)
    _targets: Targets | None = None
    _stop: trio.Event | None = None
    """Set to let the generators leave early."""
    _failed_seconds: int = 0
    _cores: CoreTime | None = None
    """The time of this machine's cores when the last second ended."""

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
        """The first signal lets the generators leave, the second ends everything at once."""
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
        state = self.state
        async with open_targets(self.scenario, is_mine=self.options.target_is_mine) as targets:
            self._targets = targets
            state.phase = "making tokens"
            endpoint = await find_endpoint(self.scenario, targets)
            await self._prepare(targets, endpoint)
            async with AsyncExitStack() as stack:
                generators = await self._open_generators(stack)
                state.generators = {each.name: each for each in generators}
                orders = await self._assignments(generators, endpoint)
                await self._play(generators, orders, targets)
            if self.scenario.checks_ledger:
                await self._check_ledger(targets)

    async def _open_generators(self, stack: AsyncExitStack) -> list[Generator]:
        agents = self.options.agents
        if agents is None:
            self.state.phase = "starting workers"
            numbers = range(self.scenario.workers)
            return [await stack.enter_async_context(open_worker(each)) for each in numbers]
        self.state.phase = "connecting to agents"
        return [
            await stack.enter_async_context(open_agent(address, agents.key))
            for address in agents.addresses
        ]

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
        await targets.read_once()  # before the first client: most authenticate at once

    async def _play(
        self, generators: Sequence[Generator], orders: Sequence[Assignment], targets: Targets
    ) -> None:
        async with trio.open_nursery() as following:
            for generator in generators:
                following.start_soon(generator.follow, self._take)
            self.state.has_begun = True
            await self._make_ready(generators, orders)
            delay = AGENT_START_DELAY if self.options.agents else START_DELAY
            start = time.monotonic() + delay
            self._stop = trio.Event()
            self.state.phase = "running"
            begun = trio.current_time() + delay
            for generator in generators:
                await generator.start(start)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_generators, generators, self._stop)
                nursery.start_soon(self._end_each_second, begun)
                nursery.start_soon(targets.poll)
                nursery.start_soon(self._act_on_targets, targets, begun)
                if len(self.scenario.stages) > 1:
                    meter = StageMeter(self.scenario, targets)
                    self.state.used_in_stages = meter.used
                    nursery.start_soon(meter.run, begun)
                await self._wait_until_done(generators, delay)
                nursery.cancel_scope.cancel()
        self._end_second(trio.current_time() - begun)
        await targets.read_once()
        self.state.verification = targets.verification()
        self.state.unverified = targets.unverified()

    async def _make_ready(
        self, generators: Sequence[Generator], orders: Sequence[Assignment]
    ) -> None:
        with trio.move_on_after(READY_TIMEOUT) as waiting:
            await assign(generators, orders)
        if waiting.cancelled_caught:
            slow = ", ".join(each.name for each in generators if not each.is_ready.is_set())
            raise RunFailed(f"not ready in {READY_TIMEOUT:g} s: {slow or 'the clocks'}")

    async def _wait_until_done(self, generators: Sequence[Generator], delay: float) -> None:
        length = self.scenario.length + self.scenario.grace + delay
        with trio.move_on_after(length + LEAVE_TIMEOUT) as waiting:
            for generator in generators:
                await generator.is_done.wait()
        if waiting.cancelled_caught:
            slow = ", ".join(each.name for each in generators if not each.is_done.is_set())
            raise RunFailed(f"this does not end: {slow}")

    def _take(self, generator: str, process: int, update: StatsUpdate) -> None:
        try:
            self.state.add(generator, update, process)
        except ValueError as problem:
            raise RunFailed(f"{generator} sent figures that cannot be read: {problem}") from None

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

    async def _stop_generators(self, generators: Sequence[Generator], stop: trio.Event) -> None:
        await stop.wait()
        for generator in generators:
            with suppress(RunFailed):
                await generator.stop()

    async def _end_each_second(self, begun: float) -> None:
        at, delay = 0.0, AGENT_UPDATE_DELAY if self.options.agents else UPDATE_DELAY
        while True:
            at += 1
            await trio.sleep_until(begun + at + delay)
            self._end_second(at)
            if self.options.abort_on_fail or self.scenario.abort_on_fail:
                self._abort_if_failed()

    def _end_second(self, at: float) -> None:
        before, self._cores = self._cores, read_core_time()
        busy = None
        if before is not None and self._cores is not None:
            busy = self._cores.part_since(before)
        self.state.end_second(at, self._targets.usage() if self._targets else {}, busy)

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

    async def _assignments(
        self, generators: Sequence[Generator], endpoint: Endpoint
    ) -> list[Assignment]:
        """One for each generator, with a share for each of its processes. Agents get the content of
        files, workers of this machine the folder where they are."""
        files: SentFiles | None = None
        folder: str | None = str(self.scenario.folder.resolve())
        if self.options.agents is not None:
            files, folder = await read_files(self.scenario), None
        number = sum(each.processes for each in generators)
        if number == 1 and self.scenario.background:
            raise RunFailed(f"the --workers of all agents together {BACKGROUND_NEEDS}")
        shares = [Share(worker=worker, of=number) for worker in range(number)]
        found = []
        for generator in generators:
            own, shares = shares[: generator.processes], shares[generator.processes :]
            found.append(
                Assignment(
                    source=self.source,
                    file=self.file,
                    raised=self.raised,
                    run=self.state.run_id,
                    endpoint=endpoint,
                    shares=own,
                    folder=folder,
                    files=files,
                )
            )
        return found
