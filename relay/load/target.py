"""The relay that is loaded: one of our own, or one that is there. Floor 6."""

from __future__ import annotations

import http.client
import ipaddress
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio
from attrs import define, field, frozen

from relay.errors import RelayError
from relay.load.ledger import Totals, read_totals
from relay.load.scenario import Scenario
from relay.load.schema import ScenarioError
from relay.load.stage import is_encrypted
from relay.load.trust import Trust

START_SECONDS = 60.0
STOP_SECONDS = 15.0
STATS_SECONDS = 5.0
KEEPER = Path(__file__).with_name("keeper.py")
MOST_STATS = 1 << 20


class TargetFailed(RelayError):
    """The relay cannot be started or reached."""


@frozen
class Usage:
    """What a process has used so far."""

    cpu_seconds: float
    resident: int
    """Bytes."""


@define(eq=False)
class Target:
    """A relay to load."""

    url: str
    """`ws://HOST:PORT`, perhaps with a path."""
    pid: int | None = None
    """None if it is not ours."""
    data_dir: Path | None = None
    log: Path | None = None
    trust: Trust = field(factory=Trust)

    async def stats(self) -> Totals:
        """The relay's own totals; `TargetFailed`."""
        with trio.move_on_after(2 * STATS_SECONDS):
            return await trio.to_thread.run_sync(self._stats, abandon_on_cancel=True)
        raise TargetFailed("cannot read the relay's /stats: it does not come to an end")

    def usage(self) -> Usage | None:
        return None if self.pid is None else read_usage(self.pid)

    def _stats(self) -> Totals:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(
            address.hostname or "", address.port or 80, timeout=STATS_SECONDS
        )
        if is_encrypted(self.url):
            connection = http.client.HTTPSConnection(
                address.hostname or "",
                address.port or 443,
                timeout=STATS_SECONDS,
                context=self.trust.context(),
            )
        try:
            connection.request("GET", "/stats")
            with connection.getresponse() as response:
                return read_totals(response.read(MOST_STATS))
        except (OSError, http.client.HTTPException, msgspec.DecodeError, ValueError) as error:
            raise TargetFailed(f"cannot read the relay's /stats: {error}") from None
        finally:
            connection.close()


@asynccontextmanager
async def open_target(scenario: Scenario, *, is_mine: bool) -> AsyncIterator[Target]:
    """The target of a scenario; one of our own ends with the block."""
    if scenario.target.url is not None:
        url = checked_url(scenario.target.url, is_mine=is_mine)
        yield Target(url, trust=find_trust(scenario))
        return
    # Whoever keeps the relay takes the folder away, too, if we cannot.
    with tempfile.TemporaryDirectory(prefix="relay-load-", ignore_cleanup_errors=True) as folder:
        # Postgres may have to run as another user than root, and pass through.
        Path(folder).chmod(0o711)  # noqa: ASYNC240 (a folder of our own)
        data_dir, log = Path(folder, "data"), Path(folder, "log")
        command = [
            *(sys.executable, "-I", "-S", str(KEEPER), folder),
            *(sys.executable, "-P", "-m", "relay", "serve", "--bind", "127.0.0.1:0"),
            *("--data-dir", str(data_dir), "--profile", "load", "--log-level", "error"),
            *scenario.target.settings,
        ]
        with log.open("wb") as sink:  # noqa: ASYNC230 (a file of our own)
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,  # when it ends, in whatever way, so does the relay
                stdout=subprocess.PIPE,
                stderr=sink,
                start_new_session=True,  # Ctrl-C is for us, and we end it in good order
            )
        try:
            pid, url = await _listening(process, log)
            ours = Trust(insecure=True)  # we know whom we started
            yield Target(url.replace("http", "ws", 1), pid, data_dir, log, ours)
        finally:
            assert process.stdin is not None
            with trio.move_on_after(2 * STOP_SECONDS, shield=True):
                await process.stdin.aclose()
                await process.wait()


async def stop(process: trio.Process) -> None:
    """End a process in good order, or else at once."""
    with trio.move_on_after(STOP_SECONDS, shield=True):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
    if process.returncode is None:
        process.kill()
        with trio.CancelScope(shield=True):  # a killed process ends
            await process.wait()


async def _listening(process: trio.Process, log: Path) -> tuple[int, str]:
    """The relay's process and address, as its keeper and it say; `TargetFailed`."""
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(START_SECONDS):
        while said.count(b"\n") < 2:
            data = await process.stdout.receive_some(4096)
            if not data:
                break
            said += data
    words = said.decode(errors="replace").split()
    if words[1:4] != ["relay", "listening", "on"]:
        await trio.lowlevel.checkpoint()
        lines = log.read_text(errors="replace").strip().splitlines()  # noqa: ASYNC240 (likewise)
        raise TargetFailed(f"the relay did not start: {lines[-1] if lines else 'no word from it'}")
    return int(words[0]), words[4]


def find_trust(scenario: Scenario) -> Trust:
    """Whom to trust at the target; `ScenarioError`."""
    ca = None if scenario.tls.ca is None else str(scenario.path(scenario.tls.ca).resolve())
    trust = Trust(ca, scenario.tls.insecure)
    trust.context()  # says what is wrong with the file before anything starts
    return trust


def checked_url(url: str, *, is_mine: bool) -> str:
    """The URL, if we may load what is there."""
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
            f"{host} is not this machine; a load test can harm: only with --target-is-mine",
        )
    return url


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_usage(pid: int) -> Usage | None:
    """What a process has used; None when it is gone."""
    try:
        if Path("/proc/self/stat").exists():
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(words[11]) + int(words[12])
            return Usage(
                ticks / os.sysconf("SC_CLK_TCK"), int(words[21]) * os.sysconf("SC_PAGESIZE")
            )
        shown = subprocess.run(  # noqa: S603 (a number)
            ["/bin/ps", "-o", "rss=,time=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        minutes, _, seconds = shown[1].rpartition(":")
        return Usage(float(minutes or 0) * 60 + float(seconds), int(shown[0]) * 1024)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
