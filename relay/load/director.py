"""Runs a scenario: target, workers, one book, one verdict. Floor 6.

Each phase is inside the one before, so leaving by any way ends the workers first, then the relay.
"""

from __future__ import annotations

import os
import platform
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

import trio
from attrs import define, field, frozen

from relay.errors import RelayError
from relay.load.checks import Result, judge_all
from relay.load.engine import Parts
from relay.load.figures import Book, Figures, Wire
from relay.load.ledger import Comparison, Totals, compare_ledger
from relay.load.results import Outcome, RunResult, Second, group_result, second_of
from relay.load.scenario import Scenario
from relay.load.schema import ScenarioError
from relay.load.settle import settle
from relay.load.stage import Address, Raised, Sent, Window
from relay.load.target import Target, TargetFailed, Usage, open_target
from relay.load.tokens import find_address
from relay.load.verdict import all_checks, own_checks
from relay.load.worker import Go, Order, leaves
from relay.load.workers import RunFailed, Worker, open_worker, raise_open_files

KEPT, FAILED, WRONG, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 3, 130
HEAD_START = 0.3
"""Seconds from the word to the start, so that all workers have heard it."""
READY_SECONDS = 60.0
LEAVING_SECONDS = 20.0
LEDGER_SECONDS = 3.0
FAILURES_IN_A_ROW = 2


@frozen(kw_only=True)
class Options:
    """What the command line says of a run."""

    target_is_mine: bool = False
    abort_on_fail: bool = False


@define(eq=False)
class Run:
    """A run as it goes, for whoever watches and for the report."""

    scenario: Scenario
    options: Options
    source: str
    file: str
    phase: str = "starting"
    book: Book = field(init=False)
    seconds: list[Second] = field(factory=list)
    run_id: str = field(factory=lambda: secrets.token_hex(4))
    started: float = field(factory=time.time)
    outcome: Outcome = "could not run"
    failure: str | None = None
    ledger: list[Comparison] = field(factory=list)
    ledger_failure: str | None = None
    checks: list[Result] = field(factory=list)
    target: Target | None = None
    windows: list[Window] = field(factory=list)
    sent: list[Sent] = field(factory=list)
    raised: list[Raised] = field(factory=list)
    now: float = 0.0
    _connected: dict[int, dict[str, int]] = field(factory=dict)
    _fresh: Figures = field(factory=Figures)
    _usage: Usage | None = None
    _bad: int = 0
    aborted_by: str | None = None
    interrupted: bool = False
    on_second: Callable[[Second], None] = lambda _second: None

    def __attrs_post_init__(self) -> None:
        wires = {
            name: Wire(group.network.bandwidth, group.network.delay)
            for name, group in self.scenario.groups.items()
        }
        self.book = Book(wires)

    @property
    def exit_code(self) -> int:
        return {
            "kept": KEPT,
            "failed": FAILED,
            "could not run": COULD_NOT_RUN,
            "interrupted": INTERRUPTED,
        }[self.outcome]

    async def perform(self) -> None:
        """Run it all. What goes wrong is in `failure`; only `ScenarioError` is raised."""
        raise_open_files()
        go_on = trio.CancelScope()
        try:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._leave_at_signal, signals, go_on, nursery.cancel_scope)
                    with go_on:
                        await self._perform()
                    nursery.cancel_scope.cancel()
        except* ScenarioError as errors:
            wrong = leaves(errors)[0]
            assert isinstance(wrong, ScenarioError)
            raise ScenarioError(f"{self.file}: {wrong.where}", wrong.problem) from None
        except* RelayError as errors:
            self.failure = str(leaves(errors)[0])
        self._conclude()

    async def _leave_at_signal(
        self, signals: AsyncIterator[int], go_on: trio.CancelScope, everything: trio.CancelScope
    ) -> None:
        await anext(signals)
        self.interrupted = True
        if self.phase == "running" and self._stop is not None:
            self.phase = "interrupted"
            self._stop.set()
        else:
            go_on.cancel()
        await anext(signals)
        everything.cancel()

    _stop: trio.Event | None = None

    async def _perform(self) -> None:
        async with open_target(self.scenario, is_mine=self.options.target_is_mine) as target:
            self.target = target
            self.phase = "making tokens"
            address = await find_address(self.scenario, target)
            before = None
            if self.scenario.target.checks_ledger:
                before = await target.stats()
            self.phase = "starting workers"
            async with AsyncExitStack() as stack:
                number = self.scenario.workers
                workers = []
                for worker in range(number):
                    order = self._order(address, worker, number)
                    workers.append(await stack.enter_async_context(open_worker(order)))
                await self._play(workers)
            if before is not None:
                self.ledger = await self._look_at_ledger(target, before)

    async def _play(self, workers: Sequence[Worker]) -> None:
        with trio.move_on_after(READY_SECONDS) as waiting:
            for worker in workers:
                await worker.ready()
        if waiting.cancelled_caught:
            raise RunFailed(f"the workers were not ready in {READY_SECONDS:g} s")
        start = time.monotonic() + HEAD_START
        self._stop = trio.Event()
        self.phase = "running"
        begun = trio.current_time() + HEAD_START
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_workers, workers, self._stop)
            nursery.start_soon(self._look_each_second, begun)
            async with trio.open_nursery() as playing:
                for number, worker in enumerate(workers):
                    playing.start_soon(self._hear, number, worker, Go(start))
            nursery.cancel_scope.cancel()
        self._look(trio.current_time() - begun)

    async def _hear(self, number: int, worker: Worker, go: Go) -> None:
        length = self.scenario.length + self.scenario.grace + HEAD_START
        with trio.move_on_after(length + LEAVING_SECONDS) as patience:
            async for said in worker.play(go):
                if said.parts is not None:
                    self._take(number, said.parts)
        if patience.cancelled_caught:
            raise RunFailed("a worker does not end")

    def _take(self, number: int, parts: Parts) -> None:
        for name, part in parts.groups.items():
            self.book.group(name).add_part(part)
            (self._fresh_generator if name == "generator" else self._fresh).add_part(part)
        self._connected[number] = {name: part.connected for name, part in parts.groups.items()}
        self.windows += parts.windows
        self.sent += parts.sent
        self.raised += parts.raised

    _fresh_generator: Figures = field(factory=Figures, init=False)

    async def _stop_workers(self, workers: Sequence[Worker], stopped: trio.Event) -> None:
        await stopped.wait()
        for worker in workers:
            await worker.stop()

    async def _look_each_second(self, begun: float) -> None:
        due = begun + 1.2  # the workers' parts of each second come soon after it
        while True:
            await trio.sleep_until(due)
            self._look(due - 0.2 - begun)
            due += 1
            if self.options.abort_on_fail or self.scenario.abort_on_fail:
                self._abort_if_failed()

    def _look(self, at: float) -> None:
        """Close the book of one second."""
        self.now = at
        usage = self.target.usage() if self.target else None
        connected = sum(sum(groups.values()) for groups in self._connected.values())
        second = second_of(
            at,
            fresh=self._fresh,
            generator=self._fresh_generator,
            connected=connected,
            usage=usage,
            before=self._usage,
            last_at=self.seconds[-1].at if self.seconds else 0.0,
        )
        for name, figures in self.book.groups.items():
            figures.connected = sum(groups.get(name, 0) for groups in self._connected.values())
        self._usage = usage
        self._fresh, self._fresh_generator = Figures(), Figures()
        self.seconds.append(second)
        self.on_second(second)

    def _abort_if_failed(self) -> None:
        failed = [
            check
            for check in all_checks(self.scenario)
            if check.judge(self.book, final=False) == "failed"
        ]
        self._bad = self._bad + 1 if failed else 0
        if self._bad >= FAILURES_IN_A_ROW and self._stop is not None:
            self.aborted_by = failed[0].line
            self._stop.set()

    async def _look_at_ledger(self, target: Target, before: Totals) -> list[Comparison]:
        """Compare once the relay has noticed that all have left, or soon after."""
        self.phase = "settling"
        comparisons: list[Comparison] = []
        end = trio.current_time() + LEDGER_SECONDS
        try:
            while True:
                comparisons = compare_ledger(before, await target.stats(), self.book)
                if all(each.agrees for each in comparisons) or trio.current_time() > end:
                    break
                await trio.sleep(0.2)
        except TargetFailed as failure:  # what the clients saw is no less true for that
            self.ledger_failure = str(failure)
        return comparisons

    def _order(self, address: Address, worker: int, of: int) -> Order:
        return Order(
            self.source, self.file, str(self.scenario.folder.resolve()), self.run_id, address.url,
            address.tokens, address.service_tokens, address.trust, worker, of,
        )  # fmt: skip

    def _conclude(self) -> None:
        self.phase = "done"
        if not (self.interrupted or self.aborted_by or self.failure):
            settle(
                self.book, self.windows, self.sent, self.raised,
                end=self.scenario.length, grace=self.scenario.grace,
            )  # fmt: skip
        self.book.group("ledger").counts["ledger.wrong"] += sum(
            not each.agrees for each in self.ledger
        )
        self.checks = judge_all(all_checks(self.scenario), self.book)
        self.checks += own_checks(self.scenario, self.book, self.ledger, self.ledger_failure)
        if self.failure is not None:
            self.outcome = "could not run"
        elif self.interrupted:
            self.outcome = "interrupted"
        elif all(check.kept for check in self.checks):
            self.outcome = "kept"
        else:
            self.outcome = "failed"

    def result(self) -> RunResult:
        """All of it, to be kept."""
        return RunResult(
            scenario=self.scenario.name,
            started=self.started,
            seconds=self.now,
            workers=self.scenario.workers,
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores,"
            f" Python {platform.python_version()}",
            outcome=self.outcome,
            failure=self.failure,
            aborted_by=self.aborted_by,
            stages={
                stage.name: sum(each.duration for each in self.scenario.stages[:number])
                for number, stage in enumerate(self.scenario.stages)
            },
            checks=self.checks,
            ledger=self.ledger,
            groups={name: group_result(each) for name, each in self.book.groups.items()},
            total=group_result(self.book.total()),
        )
