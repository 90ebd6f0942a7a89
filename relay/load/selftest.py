"""`relay load self-test`: measures the throughput of the generator on this machine.

The server is `null_server.py`, in a process of its own. Results are per core that the generator
used, so that they do not depend on what else runs. Agents run this module in a process, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import trio
from attrs import define, field, frozen
from rich.console import Console

from relay.load.actors.engine import Share, StatsUpdate, play, prepare
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.measures.generator_usage import MAX_BUSY
from relay.load.measures.stats import RunStats
from relay.load.measures.trials import TrialResult
from relay.load.null_server import NullServerPlan
from relay.load.run.agents.agents import AgentOptions, open_agent
from relay.load.run.generator import Generator
from relay.load.run.processes import raise_open_files
from relay.load.run.wire import (
    GeneratorReady,
    MessagePipe,
    RunDone,
    SelfTestOrder,
    TrialMessage,
)
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline
from relay.load.units import seconds_in_words

SELF_TEST_RUN = "selftest"
TRIAL_START_DELAY = 1.5
"""Seconds in which the server and the actors get ready."""
REPORTED_FAULTS = ("torn", "lost", "doubled", "foreign", "connect.failed", "auth.failed")
SCENARIO = """
duration = "{seconds}s"
grace = "0s"
[target]
url = "ws://127.0.0.1:1"
[phones.p]
count = {phones}
fps = {fps}
frames = "16KiB"
encoding = "msgpack"
[viewers.v]
watch = "p"
count = {viewers}
reconnect = false
arrival = {{ over = "{arrival}s" }}
"""


@frozen
class Trial:
    name: str
    viewers: int
    phones: int
    fps: int
    rate: float
    """Frames per second that the server sends to each viewer; 0 for as fast as possible."""
    arrival: float = 0.5
    """Seconds over which the viewers join."""
    seconds: float = 6.0


TRIALS = (
    Trial("received, 50 connections, as fast as they come", 50, 1, 0, 0),
    Trial("received, 1000 connections at 15/s", 1000, 1, 0, 15, arrival=2),
    Trial("received, 3000 connections at 2/s", 3000, 1, 0, 2, arrival=6, seconds=12),
    Trial("sent, 50 phones at 60/s", 0, 50, 60, 0),
)


@define(eq=False)
class TrialStats:
    """What the actors of a trial saw."""

    run_stats: RunStats = field(factory=RunStats)
    moments: list[tuple[float, float, int, int]] = field(factory=list)
    """Time, CPU time, frames and connections, each second."""
    frames: int = 0

    async def add(self, update: StatsUpdate) -> None:
        self.run_stats.add(update.groups)
        deltas = [delta for of_group in update.groups.values() for delta in of_group.values()]
        self.frames += sum(
            delta.counts.get("received", 0) + delta.counts.get("sent", 0) for delta in deltas
        )
        connected = sum(delta.connected for delta in deltas)
        self.moments.append((time.monotonic(), time.process_time(), self.frames, connected))


async def self_test(console: Console) -> None:
    """Print the results of each trial."""
    raise_open_files()
    for trial in TRIALS:
        print_trial(console, await measure(trial))


async def self_test_agents(console: Console, agents: AgentOptions) -> None:
    """Let all agents measure their machines at once, and print the results of each and the sums;
    `RelayError`."""
    async with AsyncExitStack() as stack:
        generators = [
            await stack.enter_async_context(open_agent(address, agents.key))
            for address in agents.addresses
        ]
        async with trio.open_nursery() as nursery:
            for generator in generators:
                await generator.send(SelfTestOrder())
                nursery.start_soon(generator.follow, lambda *_: None)
    for generator in generators:
        console.print(f"{generator.name}: {generator.machine}")
        for each in generator.trials:
            print_trial(console, each)
    for line in together(generators):
        console.print(line)


def together(generators: Sequence[Generator]) -> Iterator[str]:
    """What all agents can do with all their processes, trial by trial."""
    number = "1 agent" if len(generators) == 1 else f"{len(generators)} agents"
    yield f"{number} together, if each of their processes has a core of its own:"
    for trials in zip(*(each.trials for each in generators), strict=False):
        frames = sum(
            trial.frames_per_core * generator.processes
            for trial, generator in zip(trials, generators, strict=True)
        )
        limit = MAX_BUSY * frames
        yield f"    {trials[0].name}: {frames:,.0f} frames/s; up to {limit:,.0f} unmarked"


def print_trial(console: Console, result: TrialResult) -> None:
    rate = result.frames_per_core
    each = f", {1e6 / rate:.1f} us each" if rate else ""
    console.print(result.name)
    console.print(
        f"    {result.frames_per_second:,.0f} frames/s at {result.cores:.0%} of a core:"
        f" {rate:,.0f} frames/s per core{each}"
    )
    words = seconds_in_words(result.lateness)
    console.print(f"    {result.connected} connected, generator late by {words} (p99)")
    for name, (p50, p99) in result.times.items():
        shown = f"p50 {seconds_in_words(p50)}, p99 {seconds_in_words(p99)}"
        console.print(f"    {name}: {shown}")
    if result.faults:
        bad = [f"{number} {name}" for name, number in result.faults.items()]
        console.print(f"    not right: {', '.join(bad)}")


async def measure(trial: Trial) -> TrialResult:
    """Run one trial in this process."""
    trial_stats = await _try(trial)
    moments = trial_stats.moments
    after = [each for each in moments if each[0] - moments[0][0] >= trial.arrival - 0.5]
    (t0, c0, n0, _), (t1, c1, n1, _) = after[0], after[-2]
    total = trial_stats.run_stats.total()
    times = {
        name: (total.times[name].percentile(50), total.times[name].percentile(99))
        for name in ("connect_time", *(("frame_age",) if trial.rate else ()))
        if name in total.times
    }
    return TrialResult(
        name=trial.name,
        frames_per_second=(n1 - n0) / (t1 - t0),
        cores=max(c1 - c0, 1e-9) / (t1 - t0),
        connected=max(each[3] for each in moments),
        lateness=trial_stats.run_stats.group("generator").time("lateness").statistic("p99") or 0.0,
        times=times,
        faults={name: total.counts[name] for name in REPORTED_FAULTS if total.counts[name]},
    )


async def main() -> None:
    """Measure for an agent, which reads the results on stdout."""
    stdin, stdout = trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1))
    os.dup2(2, 1)
    pipe = MessagePipe(stdin, stdout)
    raise_open_files()
    async with trio.open_nursery() as nursery:

        async def end_with_stdin() -> None:
            while await pipe.order() is not None:
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_with_stdin)
        await pipe.send(GeneratorReady())
        for trial in TRIALS:
            await pipe.send(TrialMessage(await measure(trial)))
        await pipe.send(RunDone())
        nursery.cancel_scope.cancel()


async def _try(trial: Trial) -> TrialStats:
    source = SCENARIO.format(
        seconds=trial.seconds, phones=trial.phones, fps=trial.fps,
        viewers=trial.viewers, arrival=trial.arrival,
    )  # fmt: skip
    scenario = parse_scenario(source, "self-test", Path())
    start = time.monotonic() + TRIAL_START_DELAY
    trial_stats = TrialStats()
    async with open_null_server(NullServerPlan(SELF_TEST_RUN, start, 16 * 1024, trial.rate)) as url:
        context = RunContext(Timeline(scenario), Endpoint(url, ("none",)), SELF_TEST_RUN)
        actors = await prepare(context, Share())
        context.epoch = trio.current_time() + start - time.monotonic()
        await play(context, Share(), actors, trial_stats.add)
    return trial_stats


@asynccontextmanager
async def open_null_server(plan: NullServerPlan) -> AsyncIterator[str]:
    """Start a null server; gives its URL."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "relay.load.null_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which stops it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(msgspec.json.encode(plan) + b"\n")
        port = await process.stdout.receive_some(16)
        yield f"ws://127.0.0.1:{int(port)}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):  # a killed process ends
            await process.wait()


if __name__ == "__main__":
    trio.run(main)
