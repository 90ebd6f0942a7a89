"""What befalls the processes of one relay: a worker that hangs, and no more open files."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import count, islice
from pathlib import Path

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login
from tests.integration.raw import open_raw
from tests.integration.relay_process import RelayProcess, start_relay, until
from tests.integration.workers.processes import is_running, until_ready, workers_of

HASTY = (sys.executable, "-m", "tests.integration.workers.hasty_parent", "serve")
CALLERS = 20
FULL_SECONDS = 1.0
MAX_BUSY = 0.4
"""The part of that time that a process which waits may use the processor, at most."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="platform: only Linux has prlimit")


@pytest.mark.slow
async def test_a_worker_that_hangs_is_killed_and_started_again(
    database_url: str, accounts: Accounts
) -> None:
    token = accounts.session("hung")
    with start_relay("--workers", "2", command=HASTY, database_url=database_url) as relay:
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(login(relay, token)) for _ in range(4)]
            stopped, other = workers_of(relay)
            os.kill(stopped, signal.SIGSTOP)
            await until(lambda: not is_running(stopped))
            assert "worker is stuck: it is killed" in relay.log
            lost: list[Peer] = []

            async def be_lost(peer: Peer) -> None:
                await peer.hear_end()
                lost.append(peer)

            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(be_lost, peer)
                await until(lambda: len(lost) == 2)
                nursery.cancel_scope.cancel()
            await until_ready(relay)
            assert other in workers_of(relay)
            for _ in range(4):
                await stack.enter_async_context(login(relay, token))
        assert relay.log.count("worker is stuck") == 1


# -- open files


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--workers", "2", "--auth-timeout", "60", database_url=database_url) as relay:
        yield relay


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def no_more_files(*pids: int, spare: int = 0) -> Iterator[None]:
    """Processes that may open only so many more files within the block."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in before.items():
        # The limit is on numbers, of which the lowest that is free is always taken.
        taken = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
        limit = next(islice((number for number in count() if number not in taken), spare, None))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def call(relay: RelayProcess, token: str, served: list[str]) -> None:
    async with login(relay, token):
        served.append(token)
        await trio.sleep_forever()


@pytest.mark.slow
@linux
async def test_who_calls_while_no_worker_has_a_file_free_waits_and_gets_in(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("files")
    await until_ready(relay)
    async with login(relay, token) as before, trio.open_nursery() as nursery:
        served: list[str] = []
        workers = workers_of(relay)
        with no_more_files(*workers):
            for _ in range(CALLERS):
                nursery.start_soon(call, relay, token, served)
            await relay.until_logged("no descriptor is free for a connection")
            used = {pid: cpu_seconds(pid) for pid in (relay.pid, *workers)}
            await trio.sleep(FULL_SECONDS)
            for pid, seconds in used.items():
                assert cpu_seconds(pid) - seconds < FULL_SECONDS * MAX_BUSY
            assert len(served) < CALLERS
            assert (await before.ask({"type": "streams"}))["type"] == "success"
        await until(lambda: len(served) == CALLERS)
        assert workers == workers_of(relay)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@linux
async def test_a_worker_without_free_files_leaves_its_calls_to_the_other(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("leaves")
    await until_ready(relay)
    full, _ = workers_of(relay)
    with no_more_files(full):
        async with trio.open_nursery() as nursery:
            served: list[str] = []
            for _ in range(CALLERS):
                nursery.start_soon(call, relay, token, served)
            await until(lambda: len(served) == CALLERS)
            async with login(relay, token):
                pass
            nursery.cancel_scope.cancel()


@pytest.mark.slow
@linux
async def test_a_parent_without_free_files_accepts_later_and_starts_workers_later(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("parent")
    await until_ready(relay)
    async with trio.open_nursery() as nursery:
        served: list[str] = []
        victim, other = workers_of(relay)
        with no_more_files(relay.pid):
            for _ in range(CALLERS):
                nursery.start_soon(call, relay, token, served)
            await relay.until_logged("no connection can be accepted")
            os.kill(victim, signal.SIGKILL)
            await relay.until_logged("worker cannot be started")
            used = cpu_seconds(relay.pid)
            await trio.sleep(FULL_SECONDS)
            assert cpu_seconds(relay.pid) - used < FULL_SECONDS * MAX_BUSY
            assert relay.running
        await until(lambda: len(served) == CALLERS)
        await until_ready(relay)
        assert other in workers_of(relay)
        async with login(relay, token):
            pass
        nursery.cancel_scope.cancel()


@linux
async def test_silent_clients_take_no_file_of_the_parent_for_long(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("silent")
    await until_ready(relay)
    async with AsyncExitStack() as stack:
        with no_more_files(relay.pid, spare=2):
            for _ in range(CALLERS):
                await stack.enter_async_context(open_raw(relay))
            async with login(relay, token):
                assert (await relay.stats())["unauthenticated"] >= CALLERS
