"""The relay may have no more files open: who is in goes on, who calls waits, and gets in when there
is room again."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from itertools import count, islice

import psycopg
import trio
from psycopg import sql

from relay.errors import StoreUnavailable
from relay.postgres.database import open_database
from tests.integration.accounts import Accounts
from tests.integration.faults.files import FEW_FILES, used_up
from tests.integration.faults.scene import open_scene
from tests.integration.peers import Peer, login
from tests.integration.relay_process import RelayProcess, start_relay, until

SECONDS = 2.0
FILES_HERE = 256
"""More than a test has open."""
PATIENT = ("--auth-timeout", "60")
"""Flags: nobody is thrown out for saying nothing."""
ONE_CONNECTION = ("--database-pool", "1")
"""Flags: whoever asks the database uses the connection that is there, and needs no file."""


async def cpu(relay: RelayProcess) -> float:
    """Seconds of CPU that it has taken; only Linux tells."""
    if sys.platform != "linux":
        return 0.0
    text = (await relay.get("/metrics")).body.decode()
    (line,) = (line for line in text.splitlines() if line.startswith("process_cpu_seconds_total "))
    return float(line.split()[1])


async def test_streams_go_on_and_who_calls_gets_in_when_there_is_room(
    database_url: str, accounts: Accounts
) -> None:
    with start_relay(
        *PATIENT, *ONE_CONNECTION, command=FEW_FILES, database_url=database_url
    ) as relay:
        async with open_scene(relay, accounts) as scene, trio.open_nursery() as nursery:
            came = trio.Event()

            async def come() -> None:
                assert await scene.come() == "AUTHENTICATED"
                came.set()

            before = await cpu(relay)
            async with used_up(relay):
                nursery.start_soon(come)
                await trio.sleep(SECONDS)
                assert not came.is_set()
                assert await scene.send_alert() == "ALERT_ACCEPTED"
                assert await scene.renew() == "AUTHENTICATED"
            with trio.fail_after(5):
                await came.wait()
            assert scene.longest_gap < 1.0
            assert await cpu(relay) - before < SECONDS / 2
            assert relay.log.count("no connection can be accepted") == 1


async def test_a_database_that_cannot_be_called_for_want_of_files_is_away(
    database_url: str, accounts: Accounts
) -> None:
    many = ("--database-pool", "100")
    with start_relay(*PATIENT, *many, command=FEW_FILES, database_url=database_url) as relay:
        async with AsyncExitStack() as stack:
            codes: list[str] = []
            tokens = [accounts.session(f"user-{number}") for number in range(12)]
            peers = [await stack.enter_async_context(login(relay, token)) for token in tokens]

            async def ask(peer: Peer) -> None:
                codes.append((await peer.ask({"type": "alerts-since"}))["code"])

            async with used_up(relay), trio.open_nursery() as nursery:
                with locked(accounts, "relay.alerts"):  # each keeps its connection, and wants one
                    for peer in peers:
                        nursery.start_soon(ask, peer)
                    await until(lambda: "STORE_UNAVAILABLE" in codes)
            assert set(codes) == {"STORE_UNAVAILABLE", "ALERTS_REPLAYED"}
            for peer in peers:
                assert (await peer.ask({"type": "alerts-since"}))["code"] == "ALERTS_REPLAYED"


@contextmanager
def locked(accounts: Accounts, table: str) -> Iterator[None]:
    """No question about a table is answered within the block."""
    with psycopg.connect(accounts.url) as connection:
        connection.execute(sql.SQL("lock table {}").format(sql.Identifier(*table.split("."))))
        yield


async def test_whichever_file_it_is_that_cannot_be_opened(postgres_url: str) -> None:
    outcomes = []
    for spare in range(6):
        async with open_database(postgres_url) as database:
            opened = open_files()
            with files_left(spare):
                try:
                    await database.check()
                except StoreUnavailable:
                    outcomes.append("unavailable")
                    assert open_files() == opened  # no half-made connection stays behind
                else:
                    outcomes.append("answered")
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"unavailable", "answered"}


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """This process may open so many more files within the block."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = next(islice(filter(is_free, count()), number, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> int:
    return sum(not is_free(descriptor) for descriptor in range(FILES_HERE))


def is_free(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False
