"""The relay under test: one that is started for the run, or one that runs already."""

from __future__ import annotations

import ipaddress
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec
import trio
from attrs import define, field

from relay.errors import RelayError
from relay.load.actors.endpoint import TlsVerification, is_encrypted
from relay.load.measures.ledger import read_totals
from relay.load.measures.process_usage import ProcessUsage, read_process_usage
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schema import ScenarioError
from relay.outgoing.http_client import RequestFailed, open_http_client
from relay.process.reaper import reaper_command
from relay.process.temporary_folder import open_temporary_folder
from relay.protocol.reports import StatsReport

RELAY_START_TIMEOUT = 60.0
PROCESS_STOP_TIMEOUT = 15.0
STATS_TIMEOUT = 5.0
RELAY_STOP_STEPS = ((signal.SIGTERM, 20.0),)
"""Seconds in which the relay drains and stops its Postgres; SIGKILL follows."""
MAX_STATS_BYTES = 1 << 20


class TargetFailed(RelayError):
    """The relay cannot be started or reached."""


@define(eq=False)
class Target:
    """A relay under test."""

    url: str
    """`ws://HOST:PORT`, perhaps with a path."""
    pid: int | None = None
    """None if it was not started for the run."""
    data_dir: Path | None = None
    log: Path | None = None
    tls_verification: TlsVerification = field(factory=TlsVerification)

    async def stats(self) -> StatsReport:
        """The relay's own totals; `TargetFailed`."""
        parts = urlsplit(self.url)
        scheme = "https" if is_encrypted(self.url) else "http"
        url = urlunsplit((scheme, parts.netloc, "/stats", "", ""))
        trust = self.tls_verification.context_for(self.url)
        try:
            with trio.fail_after(STATS_TIMEOUT):
                async with open_http_client(trust) as http_client:
                    return read_totals(await http_client.get(url, max_bytes=MAX_STATS_BYTES))
        except trio.TooSlowError:
            why = f"no answer within {STATS_TIMEOUT:g} s"
        except (RequestFailed, msgspec.DecodeError) as error:
            why = str(error)
        raise TargetFailed(f"cannot read the relay's /stats: {why}")

    def usage(self) -> ProcessUsage | None:
        return None if self.pid is None else read_process_usage(self.pid)


@asynccontextmanager
async def open_target(scenario: Scenario, *, is_mine: bool) -> AsyncIterator[Target]:
    """Open the target of a scenario. A relay that was started ends with the block."""
    if scenario.target.url is not None:
        url = checked_url(scenario.target.url, is_mine=is_mine)
        yield Target(url, tls_verification=find_tls_verification(scenario))
        return
    # The reaper removes the folder as well, if this process cannot.
    with open_temporary_folder("relay-load-", ignore_cleanup_errors=True) as folder:
        data_dir, log = folder / "data", folder / "log"
        command = [
            *(sys.executable, "-P", "-m", "relay", "serve", "--bind", "127.0.0.1:0"),
            *("--data-dir", str(data_dir), "--profile", "load", "--log-level", "error"),
            *scenario.target.settings,
        ]
        with log.open("wb") as errors:
            process = await trio.lowlevel.open_process(
                reaper_command(command, stop=RELAY_STOP_STEPS, remove=str(folder), report_pid=True),
                stdin=subprocess.PIPE,  # when it ends, so does the relay
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for this process, which stops the relay
            )
        try:
            pid, url = await _listening(process, log)
            started = TlsVerification(insecure=True)  # we started it ourselves
            yield Target(url.replace("http", "ws", 1), pid, data_dir, log, started)
        finally:
            assert process.stdin is not None
            with trio.move_on_after(2 * PROCESS_STOP_TIMEOUT, shield=True):
                await process.stdin.aclose()
                await process.wait()


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


async def _listening(process: trio.Process, log: Path) -> tuple[int, str]:
    """The started relay's process id and URL, from its first two lines; `TargetFailed`."""
    assert process.stdout is not None
    received = b""
    with trio.move_on_after(RELAY_START_TIMEOUT):
        while received.count(b"\n") < 2:
            data = await process.stdout.receive_some(4096)
            if not data:
                break
            received += data
    words = received.decode(errors="replace").split()
    if words[1:4] != ["relay", "listening", "on"]:
        await trio.lowlevel.checkpoint()
        lines = log.read_text(errors="replace").strip().splitlines()  # noqa: ASYNC240 (likewise)
        raise TargetFailed(f"the relay did not start: {lines[-1] if lines else 'it said nothing'}")
    return int(words[0]), words[4]


def find_tls_verification(scenario: Scenario) -> TlsVerification:
    """How the target's certificate is verified; `ScenarioError`."""
    ca = None if scenario.tls.ca is None else str(scenario.path(scenario.tls.ca).resolve())
    tls_verification = TlsVerification(ca, scenario.tls.insecure)
    tls_verification.context()  # an unreadable file is an error before anything starts
    return tls_verification


def checked_url(url: str, *, is_mine: bool) -> str:
    """Return the URL if this scenario may load it; `ScenarioError`."""
    try:
        address = urlsplit(url)
        host = address.hostname
        good = address.scheme in {"ws", "wss", "http", "https"} and host and address.port != 0
    except ValueError:
        good, host = False, None
    if not good or host is None or "@" in url:
        raise ScenarioError("target.url", "expected an address such as ws://localhost:3000")
    if not (is_mine or is_loopback(host)):
        raise ScenarioError(
            "target.url",
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
