"""Everything that asks Postgres also asks through PgBouncer in transaction mode."""

from __future__ import annotations

import math
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.doctor.checks import Finding, Outcome, examine
from relay.doctor.database import DatabaseChecks
from relay.errors import StoreUnavailable
from relay.model.alerts.alert import NewAlert
from relay.postgres import notifications
from relay.postgres.database import open_database
from relay.postgres.migrate import migrate, pending
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.service_tokens import ServiceTokenTable
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.tables.sessions.users import BetterAuthUsers
from relay.postgres.tables.streams import StreamTable
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.database_queries import (
    ask,
    check_whole,
    do,
    sleep,
    what_others_do,
)
from tests.integration.peers import login
from tests.integration.relay_process import start_relay, within

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")

SERVERS = 2
"""Fewer than the pool of relay has, so that each transaction may get another one."""


@contextmanager
def run_pgbouncer(folder: Path) -> Iterator[None]:
    assert PROGRAM is not None
    with (folder / "log").open("ab") as output:
        process = subprocess.Popen(
            [PROGRAM, "--quiet", folder / "pgbouncer.ini"],
            stderr=output,
            user="nobody" if os.geteuid() == 0 else None,  # It refuses to run as root.
        )
    try:
        deadline = time.monotonic() + 10
        while not accepts(folder / ".s.PGSQL.6432"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def accepts(path: Path) -> bool:
    """Whether somebody listens: the file of a socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(str(path)) == 0


@pytest.fixture
def folder(postgres_url: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="relay-test-") as path:
        Path(path).chmod(0o777)
        write_settings(Path(path), postgres_url)
        yield Path(path)


def write_settings(path: Path, postgres_url: str) -> None:
    direct = conninfo_to_dict(postgres_url)
    users = path / "users.txt"
    users.write_text(f'"{direct["user"]}" "{direct["password"]}"\n')
    (path / "pgbouncer.ini").write_text(f"""
        [databases]
        * = host={direct["host"]} port={direct["port"]}
        [pgbouncer]
        pool_mode = transaction
        default_pool_size = {SERVERS}
        auth_type = scram-sha-256
        auth_file = {users}
        listen_addr =
        listen_port = 6432
        unix_socket_dir = {path}
        """)


@pytest.fixture
def bouncer_url(folder: Path, postgres_url: str) -> Iterator[str]:
    with run_pgbouncer(folder):
        yield make_conninfo(postgres_url, host=str(folder), port=6432)


async def test_every_room_works_through_it(bouncer_url: str) -> None:
    async with open_database(bouncer_url) as database:
        assert await migrate(database) == await pending(database) == []
        sessions = await find_better_auth(database)
        owners, alerts, services = (
            StreamTable(database),
            AlertTable(database),
            ServiceTokenTable(database, BetterAuthUsers(database, None)),
        )

        async def one(n: int) -> None:
            session = await sessions.create(f"user-{n}@example.org", timedelta(hours=1))
            user = (await sessions.find([session]))[session]
            assert await owners.claim(f"stream-{n}", user.user_id) == user.user_id
            service = await services.create(str(n), consume="*", alerts=True, operate=False)
            assert (await services.find([service]))[service].name == str(n)
            for key in ("a", "b", "a"):
                await alerts.store(
                    [NewAlert(f"stream-{n}", "s", "low", "m", 1, alert_key=key, by=user)]
                )

        async with trio.open_nursery() as nursery:
            for n in range(12):
                nursery.start_soon(one, n)
        assert len(await alerts.after(0)) == 24


async def test_a_statement_that_takes_too_long_is_ended(
    bouncer_url: str, postgres_url: str
) -> None:
    async with open_database(bouncer_url, statement_timeout=0.1) as database:
        with trio.fail_after(5), pytest.raises(StoreUnavailable, match="statement timeout"):
            await database.transact(sleep(60))
        assert set(await what_others_do(postgres_url)) == {"idle"}


async def test_nothing_that_is_set_stays_for_the_next_client(bouncer_url: str) -> None:
    async with open_database(bouncer_url, statement_timeout=7) as database:
        for _ in range(2 * SERVERS):
            await database.transact(do("select 1"))
            assert await database.transact(ask("show statement_timeout")) == "7s"
        with psycopg.connect(bouncer_url, autocommit=True, prepare_threshold=None) as other:
            for _ in range(2 * SERVERS):
                assert other.execute("show statement_timeout").fetchall() == [("0",)]


@pytest.mark.slow
async def test_hundreds_of_random_cancellations_leave_nothing(
    bouncer_url: str, postgres_url: str
) -> None:
    chance = random.Random(21)
    outcomes = {"done": 0, "cancelled": 0}

    async with open_database(bouncer_url) as database:

        async def one(patience: float, statements: int) -> None:
            with trio.move_on_after(patience) as scope:
                await database.transact(do(*["select pg_sleep(0.002)"] * statements))
            outcomes["cancelled" if scope.cancelled_caught else "done"] += 1

        for _ in range(40):
            async with trio.open_nursery() as nursery:
                for patience in (0, *(chance.uniform(0, 0.08) for _ in range(6)), math.inf):
                    nursery.start_soon(one, patience, chance.randrange(1, 10))
        assert outcomes["cancelled"] >= 40
        assert outcomes["done"] >= 40
        states = await what_others_do(postgres_url)
        assert set(states) <= {"idle"}
        assert len(states) <= SERVERS
        await check_whole(database, SERVERS)


async def test_a_restart_of_it_is_not_noticed(folder: Path, postgres_url: str) -> None:
    url = make_conninfo(postgres_url, host=str(folder), port=6432)
    async with open_database(url) as database:
        with run_pgbouncer(folder):
            await check_whole(database, SERVERS)
        with pytest.raises(StoreUnavailable):
            await database.check()
        with run_pgbouncer(folder):
            await database.check()


async def test_notifications_that_it_swallows_are_missed_and_sessions_polled(
    bouncer_url: str, postgres_url: str
) -> None:
    accounts = Accounts(postgres_url)
    with start_relay(database_url=bouncer_url) as relay:
        await relay.until_logged("by=polling")
        assert "listen_url" in relay.log
        token = accounts.session()
        async with login(relay, token) as peer:
            accounts.execute("delete from session where token = %s", token)
            async with within(1):
                _, close = await peer.hear_end()
        assert close == (4501, "session revoked")


async def test_with_the_way_past_it_sessions_are_told_of(
    bouncer_url: str, postgres_url: str
) -> None:
    with start_relay("--listen-url", postgres_url, database_url=bouncer_url) as relay:
        await relay.until_logged("by=notifications")


async def test_doctor_says_where_notifications_are_swallowed(
    bouncer_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "PROBE_TIMEOUT", 0.5)

    async def logouts(settings: Settings) -> Finding:
        found: dict[str, Finding] = {}
        checks = DatabaseChecks(settings).checks()
        await examine(checks, (), lambda each: found.update({each.name: each.finding}))
        return found["logouts"]

    through = await logouts(Settings(database_url=bouncer_url))
    assert through.outcome is Outcome.WARN
    assert "listen_url" in through.do
    past = await logouts(Settings(database_url=bouncer_url, listen_url=postgres_url))
    assert past.outcome is Outcome.OK
