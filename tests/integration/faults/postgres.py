"""A Postgres that a test may kill, stop, slow down and start again: nobody else uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import trio
from attrs import define

from relay.postgres.embedded.account import choose_account
from relay.postgres.embedded.binaries import find_binaries
from relay.postgres.embedded.cluster import Cluster
from relay.postgres.embedded.embedded import DATABASE_NAME, open_embedded
from relay.postgres.embedded.folder import DataFolder
from tests.integration.relay_process import PATIENCE


@contextmanager
def own_place() -> Iterator[Path]:
    """A folder for data, which the user of Postgres can get to."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path) / "data"


@define(eq=False)
class OwnPostgres:
    """A running cluster with relay's tables."""

    folder: DataFolder
    cluster: Cluster

    @property
    def postmaster(self) -> int:
        return postmaster(self.folder.path)

    @property
    def url(self) -> str:
        return self.cluster.url(DATABASE_NAME)

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """Dead within the block; it begins again at the end, and answers then."""
        os.kill(self.postmaster, signal.SIGKILL)
        await self.cluster.ended()
        yield
        await self.cluster.start()

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Stopped within the block, with all its processes: connections open, nobody answers."""
        processes = [self.postmaster]
        os.kill(processes[0], signal.SIGSTOP)  # so that there are no new ones
        try:
            for child in children(processes[0]):
                processes.append(child)
                os.kill(child, signal.SIGSTOP)
            yield
        finally:
            for process in reversed(processes):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)


@asynccontextmanager
async def own_postgres() -> AsyncIterator[OwnPostgres]:
    """A cluster to the end of the block."""
    with own_place() as place:
        async with open_embedded(place):
            pass  # it has all tables now
        folder = DataFolder.open(place)
        account = choose_account(folder.cluster)
        if account is not None:
            folder.admit(account)
        cluster = Cluster(folder, account, find_binaries(None, account, folder.programs))
        await cluster.create()
        await cluster.start()
        try:
            yield OwnPostgres(folder, cluster)
        finally:
            with trio.CancelScope(shield=True):
                await cluster.stop()


def postmaster(folder: Path) -> int:
    """The process id of the Postgres that runs in a data folder."""
    return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])


def children(process: int) -> list[int]:
    shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True)
    pairs = [tuple(map(int, line.split())) for line in shown.stdout.splitlines()]
    return [pid for pid, parent in pairs if parent == process]


@define(eq=False)
class SlowWay:
    """A way to a Postgres on which answers take their time."""

    url: str
    delay: float = 0.0
    """Seconds before each piece of an answer is handed on."""

    @asynccontextmanager
    async def slow(self, seconds: float) -> AsyncIterator[None]:
        """Answers take so long within the block."""
        self.delay = seconds
        try:
            yield
        finally:
            self.delay = 0.0

    async def carry(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        """Carry what two say to each other, until one of them ends."""

        async def back() -> None:
            while data := await server.receive_some():
                await trio.sleep(self.delay)
                await client.send_all(data)
            nursery.cancel_scope.cancel()

        async with server, client, trio.open_nursery() as nursery:
            nursery.start_soon(back)
            while data := await client.receive_some():
                await server.send_all(data)
            nursery.cancel_scope.cancel()


@contextmanager
def slow_way(postgres: OwnPostgres) -> Iterator[SlowWay]:
    """A way over TCP to the socket of a Postgres; in a thread, so that who starts a relay may
    block."""
    socket = postgres.folder.socket / ".s.PGSQL.5432"
    opened: Future[tuple[int, Callable[[], None]]] = Future()
    parts = urlsplit(postgres.url)
    way = SlowWay("")

    async def carry(client: trio.SocketStream) -> None:
        try:
            await way.carry(client, await trio.open_unix_socket(socket))
        except* (OSError, trio.BrokenResourceError):
            pass  # whoever hung up

    async def run() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with trio.CancelScope() as scope:
            end = partial(trio.lowlevel.current_trio_token().run_sync_soon, scope.cancel)
            opened.set_result((listener.socket.getsockname()[1], end))
            await trio.serve_listeners(carry, [listener])

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(trio.run, run)
        port, end = opened.result(PATIENCE)
        host = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"
        way.url = urlunsplit(parts._replace(netloc=host, query="sslmode=disable"))
        try:
            yield way
        finally:
            end()
            ended.result()
