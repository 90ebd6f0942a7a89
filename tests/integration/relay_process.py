"""The relay as users run it, in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from attrs import define, field, frozen

from relay.concurrency.background import open_background
from tests.integration.forked import ForkedProcess, may_fork

PROJECT = Path(__file__).parents[2]
RELAY = (sys.executable, "-m", "relay")
SERVE = (*RELAY, "serve")
PATIENCE = 60.0
"""Seconds that anything may take on a busy machine; a test that waits so long has failed."""
TICK = 0.01
"""Seconds that `within` counts at a time."""


@frozen
class Response:
    """What a plain HTTP request got."""

    status: int
    headers: HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@define(eq=False)
class RelayProcess:
    """A relay that listens."""

    url: str
    """`http://HOST:PORT`, or with https."""
    _process: subprocess.Popen[bytes] | ForkedProcess
    _stderr: Path
    _stdout: list[str] = field(factory=list)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._stderr.read_text()

    @property
    def output(self) -> str:
        """All that it wrote, once it has ended."""
        assert self._process.stdout is not None
        assert not self.running
        self._stdout.append(self._process.stdout.read().decode())
        return "".join(self._stdout) + self.log

    @property
    def memory(self) -> int:
        """Bytes that are resident."""
        shown = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self._process.pid)], check=True, capture_output=True
        )
        return int(shown.stdout) * 1024

    async def get(
        self,
        path: str,
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        return await trio.to_thread.run_sync(self._request, method, path, headers or {}, body)

    async def stats(self) -> dict[str, Any]:
        totals: dict[str, Any] = (await self.get("/stats")).json()
        return totals

    async def until_logged(self, text: str) -> None:
        await until(lambda: text in self.log)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return await trio.to_thread.run_sync(self._process.wait, PATIENCE)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Response:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        if self.url.startswith("https"):
            trusting = ssl.create_default_context()
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE  # we know whom we started
            connection = HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE, context=trusting)
        with closing(connection):
            connection.request(method, path, body, dict(headers))
            with connection.getresponse() as response:  # it keeps the socket, not the connection
                return Response(response.status, response.headers, response.read())

    def end(self) -> int:
        """End it the way a service manager does, if it still runs; returns its exit code."""
        self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@contextmanager
def start_relay(
    *arguments: str,
    database_url: str | None = None,
    bind: str = "127.0.0.1:0",
    command: Sequence[str] | None = None,
    flawless: bool = True,
) -> Iterator[RelayProcess]:
    """A relay on a free port of 127.0.0.1 that is ready, and ended with the block.

    Without a `command` it is forked, which is quicker: `SERVE` is for tests of the start itself.
    One that is `flawless` logs no traceback and, unless the test ended it, ends with 0.
    """
    with TemporaryDirectory(prefix="relay-test-") as folder:
        stderr = Path(folder) / "stderr"
        stderr.touch()
        settings = ["--bind", bind, "--log-format", "console", *arguments]
        with _start(command, settings, stderr, environment(database_url)) as process:
            try:
                line = _first_line(process)
                listening = re.fullmatch(r"relay listening on (https?://127\.0\.0\.1:\d+)\n", line)
                assert listening, f"it said {line!r}\n{stderr.read_text()}"
                relay = RelayProcess(listening[1], process, stderr, [line])
                yield relay
            except BaseException:
                process.kill()
                print(stderr.read_text())  # noqa: T201 (pytest shows it beside the failure)
                raise
            ended_by_test = not relay.running
            code = relay.end()
            if flawless:
                assert "Traceback" not in relay.log, relay.log
                assert ended_by_test or code == 0, relay.log


def _start(
    command: Sequence[str] | None,
    settings: Sequence[str],
    stderr: Path,
    environment: Mapping[str, str],
) -> subprocess.Popen[bytes] | ForkedProcess:
    if command is None and may_fork():
        return ForkedProcess(["serve", *settings], stderr, PROJECT, environment)
    with stderr.open("wb") as sink:
        return subprocess.Popen(
            [*(command or SERVE), *settings],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            cwd=PROJECT,
            env=environment,
            bufsize=0,
        )


def run_relay(
    *arguments: str, database_url: str | None = None, command: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Without `RELAY` as the `command`, it is forked."""
    if command is not None or not may_fork():
        return subprocess.run(
            [*(command or RELAY), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=environment(database_url),
            timeout=PATIENCE,
            check=False,
        )
    with TemporaryDirectory(prefix="relay-test-") as folder:
        stderr = Path(folder) / "stderr"
        with ForkedProcess(arguments, stderr, PROJECT, environment(database_url)) as process:
            try:
                output = process.communicate(PATIENCE)
            except BaseException:
                process.kill()
                raise
            return subprocess.CompletedProcess(
                arguments, process.wait(0), output, stderr.read_text()
            )


def environment(database_url: str | None) -> dict[str, str]:
    given = {} if database_url is None else {"RELAY_DATABASE_URL": database_url}
    return {**os.environ, **given}


def processes_about(text: str) -> list[str]:
    """The command lines of the processes that have this in theirs."""
    shown = subprocess.run(["ps", "-A", "-ww", "-o", "args="], check=True, capture_output=True)
    return [line for line in shown.stdout.decode().splitlines() if text in line]


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is so; fail when that takes too long."""
    with trio.fail_after(PATIENCE):
        while True:
            so = condition()
            if so if isinstance(so, bool) else await so:
                return
            await trio.sleep(0.02)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Fail when the block takes longer; while this machine is too busy for us, time stands still.

    Tests beside this one take the processor from the relay as from us.
    """
    async with open_background() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_after, seconds, scope)
            await trio.lowlevel.checkpoint()
            yield
        if scope.cancelled_caught:
            raise trio.TooSlowError


async def _cancel_after(seconds: float, scope: trio.CancelScope) -> None:
    for _ in range(round(seconds / TICK)):
        await trio.sleep(TICK)  # which takes longer where others have the processor
    scope.cancel()


def _first_line(process: subprocess.Popen[bytes] | ForkedProcess) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    return process.stdout.readline().decode() if ready else ""
