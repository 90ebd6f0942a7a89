"""`relay load self-test`: measures the throughput of the generator on this machine.

The server is `null_server.py`, in a process of its own. Results are per core that the generator
used, so that they do not depend on what else runs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from attrs import define, field, frozen
from rich.console import Console

from relay.load.actors.endpoint import Endpoint
from relay.load.actors.engine import Share, StatsUpdate, play, prepare
from relay.load.actors.run_context import RunContext
from relay.load.measures.stats import RunStats
from relay.load.null_server import NullServerPlan
from relay.load.run.worker_process import raise_open_files
from relay.load.scenario.scenario import parse_scenario
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
        trial_stats = await _try(trial)
        after = [
            each
            for each in trial_stats.moments
            if each[0] - trial_stats.moments[0][0] >= trial.arrival - 0.5
        ]
        (t0, c0, n0, _), (t1, c1, n1, _) = after[0], after[-2]
        connected = max(each[3] for each in trial_stats.moments)
        seconds, cpu, frames = t1 - t0, max(c1 - c0, 1e-9), n1 - n0
        counts = trial_stats.run_stats.total().counts
        console.print(trial.name)
        console.print(
            f"    {frames / seconds:,.0f} frames/s at {cpu / seconds:.0%} of a core:"
            f" {frames / cpu:,.0f} frames/s per core, {cpu / max(frames, 1) * 1e6:.1f} us each"
        )
        late = trial_stats.run_stats.group("generator").time("lateness").statistic("p99") or 0
        words = seconds_in_words(late)
        console.print(f"    {connected} connected, generator late by {words} (p99)")
        times = trial_stats.run_stats.total().times
        for name in ("connect_time", *(("frame_age",) if trial.rate else ())):
            if name in times:
                p50, p99 = (seconds_in_words(times[name].percentile(each)) for each in (50, 99))
                console.print(f"    {name}: p50 {p50}, p99 {p99}")
        bad = [f"{counts[name]} {name}" for name in REPORTED_FAULTS if counts[name]]
        if bad:
            console.print(f"    not right: {', '.join(bad)}")


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
