"""An agent between a coordinator and its processes, and generators that fail a run."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from attrs import evolve

from relay.load.actors.engine import StatsUpdate
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.stats import StatsDelta
from relay.load.measures.trials import TrialResult
from relay.load.run.agents import agent as agent_module
from relay.load.run.agents.agent import ASSIGNMENT_TIMEOUT, Agent
from relay.load.run.agents.agents import _greeting
from relay.load.run.agents.clocks import ClockFilter
from relay.load.run.agents.handshake import AgentRefused
from relay.load.run.coordinator import Coordinator, RunOptions
from relay.load.run.generator import (
    GONE_TIMEOUT,
    STALL_TIMEOUT,
    Generator,
    OnUpdate,
    RunFailed,
    assign,
)
from relay.load.run.wire import (
    MAX_AGENT_BYTES,
    Assignment,
    ClockProbe,
    ClockReading,
    GeneratorReady,
    Greeting,
    MessagePipe,
    Order,
    RunDone,
    SelfTestOrder,
    StartSignal,
    Statement,
    StopSignal,
    TrialMessage,
    UpdateMessage,
)
from relay.load.run.worker import StartedLate, work
from relay.load.scenario.parsing import parse_scenario
from relay.transport.pinned_key import make_pinned_key
from tests.unit.load.run.test_permit import ASKED, PERMIT
from tests.unit.load.run.test_wire import update

pytestmark = pytest.mark.mock_clock

TRIAL = TrialResult(
    name="t", frames_per_second=1, cores=1, connected=1, lateness=0, times={}, faults={}
)


def two_ends() -> tuple[MessagePipe, MessagePipe]:
    ours, theirs = trio.testing.memory_stream_pair()
    return MessagePipe(ours, ours), MessagePipe(theirs, theirs)


class Scene:
    """An agent, its coordinator's end, and the ends of the processes that it started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processes: int = 1) -> None:
        self.children: list[MessagePipe] = []
        self.running = 0
        self.said: list[str] = []
        self.agent = Agent(
            key=make_pinned_key("agent"),
            coordinators=frozenset(),
            permit=PERMIT,
            processes=processes,
            say=self.said.append,
        )
        monkeypatch.setattr(agent_module, "open_process", self._open)

    @asynccontextmanager
    async def _open(self, _module: str) -> AsyncIterator[MessagePipe]:
        ours, theirs = two_ends()
        self.children.append(theirs)
        self.running += 1
        try:
            yield ours
        finally:
            self.running -= 1

    async def call(self, nursery: trio.Nursery) -> MessagePipe:
        ours, theirs = two_ends()
        nursery.start_soon(self.agent.serve, theirs)
        assert isinstance(await ours.statement(), Greeting)
        return ours

    async def begin(self, nursery: trio.Nursery, asked: Assignment = ASKED) -> MessagePipe:
        """Up to where all processes are ready."""
        coordinator = await self.call(nursery)
        await coordinator.send(asked)
        await trio.testing.wait_all_tasks_blocked()
        for child in self.children:
            await child.send(GeneratorReady())
        assert isinstance(await coordinator.statement(), GeneratorReady)
        return coordinator


async def test_a_process_gets_what_the_agent_permits_and_no_way_to_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    forged = msgspec.structs.replace(ASKED, folder="/", files=None, permit=None, process=7)
    async with trio.open_nursery() as nursery:
        await scene.begin(nursery, forged)
        order = await scene.children[0].order()
        assert isinstance(order, Assignment)
        assert (order.folder, order.permit, order.process) == (None, PERMIT, 0)
        assert order.files is not None
        nursery.cancel_scope.cancel()


async def test_orders_and_updates_pass_and_the_end_of_all_processes_is_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, processes=2)
    shares = [*ASKED.shares, *ASKED.shares]
    async with trio.open_nursery() as nursery:
        coordinator = await scene.begin(nursery, msgspec.structs.replace(ASKED, shares=shares))
        await coordinator.send(StartSignal(3.5))
        await coordinator.send(ClockProbe(9))
        reading = await coordinator.statement()
        assert isinstance(reading, ClockReading)
        assert reading.number == 9
        for child in scene.children:
            assert isinstance(await child.order(), Assignment)
            assert await child.order() == StartSignal(3.5)
        await scene.children[1].send(UpdateMessage(update()))
        message = await coordinator.statement()
        assert isinstance(message, UpdateMessage)
        assert message.process == 1
        await coordinator.send(StopSignal())
        for child in scene.children:
            assert await child.order() == StopSignal()
            await child.send(RunDone())
        assert await coordinator.statement() == RunDone()
    assert scene.running == 0
    assert scene.said == ["run abcd1234 (mine.toml) begins", "it has ended"]


async def test_a_coordinator_that_vanishes_ends_the_load_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for vanishes in ("without a word", "and its connection ends"):
        scene = Scene(monkeypatch)
        async with trio.open_nursery() as nursery:
            coordinator = await scene.begin(nursery)
            assert scene.running == 1
            if vanishes == "without a word":
                await trio.sleep(GONE_TIMEOUT - 1)
                await coordinator.send(ClockProbe(1))
                await trio.sleep(GONE_TIMEOUT - 1)
                assert scene.running == 1
                await trio.sleep(1.1)
            else:
                assert isinstance(coordinator._outgoing, trio.StapledStream)
                await coordinator._outgoing.aclose()
                await trio.testing.wait_all_tasks_blocked()
            assert scene.running == 0
            nursery.cancel_scope.cancel()


async def test_a_process_that_is_never_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.call(nursery)
        await coordinator.send(ASKED)
        await trio.sleep(ASSIGNMENT_TIMEOUT + 1)
        assert scene.running == 0
        assert isinstance(await coordinator.statement(), RunDone)


async def test_probes_do_not_prolong_the_making_of_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.call(nursery)
        await coordinator.send(ASKED)

        async def probe() -> None:
            with suppress(trio.BrokenResourceError):
                for number in range(1000):
                    await coordinator.send(ClockProbe(number))
                    await trio.sleep(1)

        nursery.start_soon(probe)
        while isinstance(said := await coordinator.statement(), ClockReading):
            pass
        assert said == RunDone(f"its processes were not ready in {ASSIGNMENT_TIMEOUT:g} s")
        assert trio.current_time() < ASSIGNMENT_TIMEOUT + 5
        nursery.cancel_scope.cancel()
    assert scene.running == 0


async def test_a_coordinator_that_asks_for_nothing_does_not_hold_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        await scene.call(nursery)
        await trio.sleep(ASSIGNMENT_TIMEOUT + 1)
        await scene.begin(nursery)
        nursery.cancel_scope.cancel()


async def test_there_is_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        await scene.begin(nursery)
        ours, theirs = two_ends()
        await scene.agent.serve(theirs)
        with pytest.raises(AgentRefused, match="takes no run: it is busy with another run"):
            await _greeting("a:1", ours)
        assert scene.running == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (msgspec.structs.replace(ASKED, source="x" * 2_000_000), "larger than 1 MiB"),
        (
            msgspec.structs.replace(ASKED, shares=[]),
            "shares",
        ),
        (StartSignal(1.0), "another order"),
        (StopSignal(), "another order"),
    ],
)
async def test_what_an_agent_refuses_starts_no_process(
    order: Order, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.call(nursery)
        await coordinator.send(order)
        done = await coordinator.statement()
        assert isinstance(done, RunDone)
        assert words in (done.failure or "")
    assert scene.children == []


async def test_garbage_after_the_greeting_ends_that_connection_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.call(nursery)
        await coordinator._outgoing.send_all(b"\xff" * 100)
        done = await coordinator.statement()
        assert isinstance(done, RunDone)
        assert "no message" in (done.failure or "")
        await scene.begin(nursery)
        nursery.cancel_scope.cancel()


async def test_an_assignment_in_the_middle_of_a_run_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.begin(nursery)
        await coordinator.send(msgspec.structs.replace(ASKED, source=""))
        done = await coordinator.statement()
        assert isinstance(done, RunDone)
        assert done.failure is not None
    assert scene.running == 0


async def test_a_process_that_fails_or_dies_is_told_to_the_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for last, words in ((RunDone("no such stream"), "no such stream"), (None, "process of it")):
        scene = Scene(monkeypatch)
        async with trio.open_nursery() as nursery:
            coordinator = await scene.begin(nursery)
            if last is None:
                assert isinstance(scene.children[0]._outgoing, trio.StapledStream)
                await scene.children[0]._outgoing.aclose()
            else:
                await scene.children[0].send(last)
            done = await coordinator.statement()
            assert isinstance(done, RunDone)
            assert words in (done.failure or "")


async def test_a_self_test_is_one_process_that_has_no_assignment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, processes=3)
    async with trio.open_nursery() as nursery:
        coordinator = await scene.call(nursery)
        await coordinator.send(SelfTestOrder())
        await trio.testing.wait_all_tasks_blocked()
        (child,) = scene.children
        await child.send(RunDone())
        assert await coordinator.statement() == RunDone()


# -- the worker of an agent


async def test_a_worker_that_learns_too_late_when_to_start_fails() -> None:
    ours, theirs = two_ends()
    await ours.send(ASKED)
    await ours.send(StartSignal(-1e9))
    with pytest.raises(StartedLate, match="it learned when to start"):
        await work(theirs)


# -- the coordinator's end


class Play:
    """A generator that a coordinator follows, and the other end of it."""

    def __init__(self, *, agent: bool = True, processes: int = 1) -> None:
        pipe, self.far = two_ends()
        clock = ClockFilter() if agent else None
        self.generator = Generator("b.test:3100", pipe, processes, "a machine", clock)
        self.updates: list[tuple[str, int]] = []

    def take(self, generator: str, process: int, _update: StatsUpdate) -> None:
        self.updates.append((generator, process))

    async def answer(self) -> None:
        """Be a good agent."""
        while (order := await self.far.order()) is not None:
            if isinstance(order, Assignment):
                await self.far.send(GeneratorReady())
            elif isinstance(order, ClockProbe):
                await self.far.send(ClockReading(order.number, 1000.0))

    async def follow(self, on_update: OnUpdate | None = None) -> str:
        """Why following it failed."""
        with pytest.RaisesGroup(RunFailed, flatten_subgroups=True, allow_unwrapped=True) as caught:
            await self.generator.follow(on_update or self.take)
        found: BaseException = caught.value
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        return str(found)


async def test_an_agent_that_is_ready_and_then_silent_fails_the_run_with_its_name() -> None:
    play = Play()
    await play.far.send(GeneratorReady())
    assert await play.follow() == f"b.test:3100 has said nothing for {GONE_TIMEOUT:g} s"


async def test_an_agent_that_answers_but_whose_process_stands_still_fails_the_run() -> None:
    play = Play(processes=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.answer)
        nursery.start_soon(_start_soon, play)
        words = await play.follow()
        nursery.cancel_scope.cancel()
    assert words == f"b.test:3100 stalls: process 2 of it sent no update for {STALL_TIMEOUT:g} s"
    assert set(play.updates) == {("b.test:3100", 0)}


async def _start_soon(play: Play) -> None:
    await play.far.send(GeneratorReady())
    await play.generator.has_clock.wait()
    # Long ago: the clock of the processes does not jump, and would first have to reach the timeout.
    await play.generator.start(time.monotonic() - 3600)
    while True:
        await trio.sleep(1)
        await play.far.send(UpdateMessage(update(), 0))


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (None, "b.test:3100 has ended"),
        (RunDone("19 connections\nare more"), "b.test:3100: 19 connections are more"),
        (UpdateMessage(update(), 0), "b.test:3100 says something else than it should"),
        (Greeting(version="1", machine="m", processes=1), "b.test:3100 says something else"),
        (TrialMessage(evolve(TRIAL, name="\x1b[2J")), "b.test:3100 says something else"),
    ],
)
async def test_an_agent_that_ends_or_refuses_fails_the_run_with_its_name(
    last: Statement | None, words: str
) -> None:
    play = Play()
    if last is None:
        assert isinstance(play.far._outgoing, trio.StapledStream)
        await play.far._outgoing.aclose()
    else:
        await play.far.send(last)
    assert words in await play.follow()


async def test_an_agent_cannot_send_a_message_that_is_larger_than_any_of_use() -> None:
    play = Play()
    await play.far._outgoing.send_all(struct.pack(">I", MAX_AGENT_BYTES + 1))
    assert "cannot be understood" in await play.follow()


async def test_a_group_in_the_background_needs_a_second_process() -> None:
    source = "workers = 2\n[phones.p]\nbackground = true\n"
    scenario = parse_scenario(source, "mine.toml", Path())
    coordinator = Coordinator(scenario, RunOptions(), source, "mine.toml")
    two, one = Play(processes=2).generator, Play().generator
    assert len(await coordinator._assignments([one, one], ASKED.endpoint)) == 2
    assert len(await coordinator._assignments([two], ASKED.endpoint)) == 1
    with pytest.raises(RunFailed, match="--workers of all agents together must be 2 or more"):
        await coordinator._assignments([one], ASKED.endpoint)


async def test_an_agent_cannot_send_trials_without_end() -> None:
    play = Play()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await play.far.send(TrialMessage(TRIAL))

        nursery.start_soon(send)
        assert "says something else than it should" in await play.follow()
        nursery.cancel_scope.cancel()


async def test_what_an_agent_says_of_itself_is_shown_without_control_characters() -> None:
    ours, theirs = two_ends()
    await theirs.send(Greeting(version="1\x1b[2J", machine="m", processes=1))
    with pytest.raises(AgentRefused, match=r"has relay 1 \[2J"):
        await _greeting("a:1", ours)


async def test_what_cannot_be_read_fails_the_run_with_its_name() -> None:
    play = Play()
    await play.far._outgoing.send_all(b"\xff" * 50)
    assert (await play.follow()).startswith("b.test:3100 cannot be understood")


async def test_a_clock_is_known_before_the_start_and_the_start_is_told_in_it() -> None:
    play = Play()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.answer)
        nursery.start_soon(play.generator.follow, play.take)
        await assign([play.generator], [ASKED])
        assert play.generator.clock is not None
        assert play.generator.clock.compared >= 16
        assert play.generator.clock_error is not None
        nursery.cancel_scope.cancel()


async def test_a_worker_of_this_machine_has_its_clock_and_is_given_all_the_time_it_needs() -> None:
    play = Play(agent=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play.generator.follow, play.take)
        await play.far.send(GeneratorReady())
        await trio.sleep(100)
        await play.generator.start(12.5)
        assert await play.far.order() == StartSignal(12.5)
        await trio.sleep(100)
        await play.far.send(RunDone())
        await play.generator.is_done.wait()
    assert play.generator.clock_error is None


@pytest.mark.parametrize("group", ["", "strangers", "p\x1b[2J"])
async def test_figures_of_a_group_that_there_is_not_fail_the_run(group: str) -> None:
    scenario = parse_scenario("[phones.p]", "s.toml", Path())
    coordinator = Coordinator(scenario, RunOptions(), "", "s.toml")
    delta = StatsDelta({"sent": 1}, {}, {}, 0)
    coordinator._take("b:1", 0, StatsUpdate({"p": {"": delta}}, Observations(), "run"))
    for groups in (
        {group: {"": delta}},
        {"p": {"elsewhere": delta}},
        {"p": {"": StatsDelta({}, {}, {"frame_age": "no histogram"}, 0)}},
    ):
        with pytest.raises(RunFailed, match="b:1 sent figures that cannot be read"):
            coordinator._take("b:1", 0, StatsUpdate(groups, Observations(), "run"))
