"""How much the generator itself can do on this machine. Floor 6.

The other side is the least server there can be (`sink.py`), in a process of its own. Figures are
for each core that the generator used, so that they do not depend on what else runs.
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

from relay.load.engine import Parts, Share, play, prepare
from relay.load.figures import Book
from relay.load.scenario import parse_scenario
from relay.load.schedule import Timeline
from relay.load.sink import Plan
from relay.load.stage import Address, Stage
from relay.load.units import seconds_in_words
from relay.load.workers import raise_open_files

RUN = "selftest"
HEAD_START = 1.5
FAULTS = ("torn", "lost", "doubled", "foreign", "connect.failed", "auth.failed")
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
    """Frames a second that the sink gives each viewer; 0 is as fast as it goes."""
    arrival: float = 0.5
    seconds: float = 6.0


TRIALS = (
    Trial("received, 50 connections, as fast as they come", 50, 1, 0, 0),
    Trial("received, 1000 connections at 15/s", 1000, 1, 0, 15, arrival=2),
    Trial("received, 3000 connections at 2/s", 3000, 1, 0, 2, arrival=6, seconds=12),
    Trial("sent, 50 phones at 60/s", 0, 50, 60, 0),
)


@define(eq=False)
class Tally:
    """What one trial came to, between two moments."""

    book: Book = field(factory=Book)
    moments: list[tuple[float, float, int, int]] = field(factory=list)
    """Time, CPU time, frames and connections, each second."""
    frames: int = 0

    async def keep(self, parts: Parts) -> None:
        for name, part in parts.groups.items():
            self.book.group(name).add_part(part)
            self.frames += part.counts.get("received", 0) + part.counts.get("sent", 0)
        connected = sum(part.connected for part in parts.groups.values())
        self.moments.append((time.monotonic(), time.process_time(), self.frames, connected))


async def self_test(console: Console) -> None:
    """Print what each trial came to."""
    raise_open_files()
    for trial in TRIALS:
        tally = await _try(trial)
        after = [
            each for each in tally.moments if each[0] - tally.moments[0][0] >= trial.arrival - 0.5
        ]
        (t0, c0, n0, _), (t1, c1, n1, _) = after[0], after[-2]
        connected = max(each[3] for each in tally.moments)
        seconds, cpu, frames = t1 - t0, max(c1 - c0, 1e-9), n1 - n0
        counts = tally.book.total().counts
        console.print(trial.name)
        console.print(
            f"    {frames / seconds:,.0f} frames/s at {cpu / seconds:.0%} of a core:"
            f" {frames / cpu:,.0f} frames/s per core, {cpu / max(frames, 1) * 1e6:.1f} us each"
        )
        late = tally.book.group("generator").time("lateness").statistic("p99") or 0
        words = seconds_in_words(late)
        console.print(f"    {connected} connected, generator late by {words} (p99)")
        times = tally.book.total().times
        for name in ("connect_time", *(("frame_age",) if trial.rate else ())):
            if name in times:
                p50, p99 = (seconds_in_words(times[name].percentile(each)) for each in (50, 99))
                console.print(f"    {name}: p50 {p50}, p99 {p99}")
        bad = [f"{counts[name]} {name}" for name in FAULTS if counts[name]]
        if bad:
            console.print(f"    not right: {', '.join(bad)}")


async def _try(trial: Trial) -> Tally:
    source = SCENARIO.format(
        seconds=trial.seconds, phones=trial.phones, fps=trial.fps,
        viewers=trial.viewers, arrival=trial.arrival,
    )  # fmt: skip
    scenario = parse_scenario(source, "self-test", Path())
    start = time.monotonic() + HEAD_START
    tally = Tally()
    async with open_sink(Plan(RUN, start, 16 * 1024, trial.rate)) as url:
        stage = Stage(Timeline(scenario), Address(url, ("none",)), RUN)
        actors = await prepare(stage, Share())
        stage.epoch = trio.current_time() + start - time.monotonic()
        await play(stage, Share(), actors, tally.keep)
    return tally


@asynccontextmanager
async def open_sink(plan: Plan) -> AsyncIterator[str]:
    """A sink and its address."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "relay.load.sink"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
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
