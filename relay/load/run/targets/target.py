"""A relay under test: one that is started for the run, or one that runs already."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import trio
from attrs import define, field, frozen

from relay.load.actors.network.endpoint import TlsVerification
from relay.load.measures.process_usage import ProcessUsage, read_process_usage
from relay.load.measures.reconciliation.ledger import LostFrames, TargetLedger, TargetTotals
from relay.load.run.targets.target_reports import MetricsReading, TargetFailed, TargetReports
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schema import ScenarioError
from relay.process.reaper import reaper_command

RELAY_START_TIMEOUT = 60.0
PROCESS_STOP_TIMEOUT = 15.0
RELAY_STOP_STEPS = ((signal.SIGTERM, 20.0),)
"""Seconds in which the relay drains and stops its Postgres; SIGKILL follows."""


@frozen(kw_only=True)
class RelayCommand:
    """How a relay is started for a run."""

    arguments: Sequence[str]
    """After `relay serve`; without `--bind`."""
    log: Path
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    remove: str = ""
    """A folder that is removed once the relay has ended, if this process cannot do it."""


@define(eq=False)
class StartedRelay:
    """A relay that runs as long as this process holds its standard input."""

    pid: int
    url: str
    """`http://HOST:PORT`, or with https."""
    _process: trio.Process

    @classmethod
    async def start(cls, command: RelayCommand, bind: str = "127.0.0.1:0") -> StartedRelay:
        """Start it and wait until it listens; `TargetFailed`."""
        process = await open_reaped(
            [sys.executable, "-P", "-m", "relay", "serve", "--bind", bind, *command.arguments],
            command,
        )
        try:
            words = (await first_lines(process, 2)).split()
        except BaseException:
            with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
                await end_reaped(process)
            raise
        if words[1:4] != ["relay", "listening", "on"]:
            with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
                await end_reaped(process)
            raise TargetFailed(f"the relay did not start: {last_line(command.log)}")
        return cls(int(words[0]), words[4], process)

    async def stop(self) -> None:
        """Have it drained, and wait for its end."""
        await end_reaped(self._process)


async def open_reaped(command: Sequence[str], how: RelayCommand) -> trio.Process:
    """Start a program that ends with this process; its log gets what it writes to stderr."""
    with how.log.open("ab") as errors:
        return await trio.lowlevel.open_process(
            reaper_command(command, stop=RELAY_STOP_STEPS, remove=how.remove, report_pid=True),
            stdin=subprocess.PIPE,  # when it ends, so does the program
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for this process, which stops the program
            env={**os.environ, **how.environment},
        )


async def end_reaped(process: trio.Process) -> None:
    assert process.stdin is not None
    await process.stdin.aclose()
    await process.wait()


async def first_lines(process: trio.Process, number: int) -> str:
    """The first lines that a program writes, or fewer if it ends or they do not come in time."""
    assert process.stdout is not None
    received = b""
    with trio.move_on_after(RELAY_START_TIMEOUT):
        while received.count(b"\n") < number:
            data = await process.stdout.receive_some(4096)
            if not data:
                break
            received += data
    return received.decode(errors="replace")


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


@define(eq=False)
class Target:
    """A relay under test."""

    name: str
    """"" if it is the only one."""
    url: str
    """`ws://HOST:PORT`, perhaps with a path."""
    reports: TargetReports
    relay: StartedRelay | None = None
    """None if it was not started for the run, or has ended."""
    command: RelayCommand | None = None
    """None if it was not started for the run."""
    operator_token: str | None = field(default=None, repr=False)
    lost: LostFrames = field(factory=LostFrames)
    is_complete: bool = True
    """Whether it ran all the time, so that its totals are complete."""
    on_change: Callable[[str], object] = lambda _words: None
    """Called with what has become of it."""
    _base: TargetTotals = field(factory=TargetTotals)
    """What it had counted at the start of the run."""
    _ended: TargetTotals = field(factory=TargetTotals)
    """What was counted, as far as is known, before it was started anew."""
    _ended_usage: ProcessUsage = field(factory=lambda: ProcessUsage(0.0, 0))
    _metrics: MetricsReading = field(factory=MetricsReading)
    """As it was last read."""
    _first_metrics: MetricsReading | None = None
    """As it was first read, since it last started."""

    async def begin(self) -> None:
        """Note what it has counted before the run; `TargetFailed`."""
        self._base = await self.reports.totals()

    async def ledger(self) -> TargetLedger:
        """What it has counted since the start of the run; `TargetFailed`."""
        totals = self._ended
        if self.command is None or self.relay is not None:
            totals = totals.plus((await self.reports.totals()).plus(self._base, -1))
        return TargetLedger(
            target=self.name, totals=totals, lost=self.lost, is_complete=self.is_complete
        )

    async def poll(self) -> None:
        """Read what changes during the run. A relay that does not answer is asked again later."""
        with suppress(TargetFailed):
            self._metrics = (await self.reports.metrics()).at(trio.current_time())
            self._first_metrics = self._first_metrics or self._metrics
            if self.operator_token is not None:
                self.lost.note(await self.reports.figures(self.operator_token))

    @property
    def has_workers(self) -> bool:
        return self._metrics.has_workers

    @property
    def verification(self) -> float | None:
        """Mean seconds in which it verified a token during the run, as far as is known."""
        first = self._first_metrics
        return None if first is None else self._metrics.verification_since(first)

    @property
    def unverified(self) -> float:
        """The part of the tokens of the run that it could not verify, as far as is known."""
        first = self._first_metrics
        return 0.0 if first is None else self._metrics.unverified_since(first)

    def usage(self) -> ProcessUsage | None:
        """What its processes have used so far, as far as is known."""
        usage = self._metrics.usage
        if self.relay is not None:
            parent = read_process_usage(self.relay.pid)
            if parent is None or not self.has_workers:
                usage = parent
            elif usage is not None:
                usage = usage.plus(parent)
        elif self.command is not None:
            return self._ended_usage
        return usage and usage.plus(ProcessUsage(self._ended_usage.cpu_seconds, 0))

    async def drain(self) -> None:
        """End a relay that was started for the run, and wait until it has ended."""
        assert self.relay is not None
        relay, self.is_complete = self.relay, False
        with suppress(TargetFailed):
            ledger = await self.ledger()
            self._ended, self._base = ledger.totals, TargetTotals()
        usage = self.usage()
        if usage is not None:
            self._ended_usage = ProcessUsage(usage.cpu_seconds, 0)
        self.relay, self._metrics, self._first_metrics = None, MetricsReading(), None
        self.on_change("drains")
        with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
            await relay.stop()  # it must not outlive the run, nor its database
        self.on_change("has ended")

    async def restart(self) -> None:
        """Drain it, and start it again at the same address; `TargetFailed`."""
        assert self.command is not None
        if self.relay is not None:
            await self.drain()
        self.relay = await StartedRelay.start(self.command, urlsplit(self.url).netloc)
        self.on_change("serves again")


async def stop(process: trio.Process) -> None:
    """Terminate a process, and kill it if that takes too long."""
    with trio.move_on_after(PROCESS_STOP_TIMEOUT, shield=True):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
    if process.returncode is None:
        process.kill()
        with trio.CancelScope(shield=True):  # a killed process ends
            await process.wait()


def find_tls_verification(scenario: Scenario) -> TlsVerification:
    """How the target's certificate is verified; `ScenarioError`."""
    ca = None if scenario.tls.ca is None else str(scenario.path(scenario.tls.ca).resolve())
    return TlsVerification.of(ca, insecure=scenario.tls.insecure)


def checked_url(url: str, where: str, *, is_mine: bool) -> str:
    """Return the URL if this scenario, which has it at `where`, may load it; `ScenarioError`."""
    try:
        address = urlsplit(url)
        host = address.hostname
        good = address.scheme in {"ws", "wss", "http", "https"} and host and address.port != 0
    except ValueError:
        good, host = False, None
    if not good or host is None or "@" in url:
        raise ScenarioError(where, "expected an address such as ws://localhost:3000")
    if not (is_mine or is_loopback(host)):
        raise ScenarioError(
            where,
            f"{host} is not this machine; a load test can do harm, so this needs --target-is-mine",
        )
    return url


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
