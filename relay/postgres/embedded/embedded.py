"""Runs a Postgres for relay: creates it, starts it, keeps it running, and stops it with relay.

The process that holds the lock of the data folder runs Postgres there; other commands (`relay
token` beside `relay serve`) get the address of that Postgres. It listens on a Unix socket only,
asks for a password, and ends with relay, in whatever way relay ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import psycopg
import structlog
import trio

from relay.errors import ConfigError, StoreUnavailable
from relay.postgres.database import open_database
from relay.postgres.embedded.account import choose_account
from relay.postgres.embedded.binaries import find_binaries
from relay.postgres.embedded.cluster import (
    CLUSTER_STOP_TIMEOUT,
    FILE_POLL_INTERVAL,
    START_TIMEOUT,
    Cluster,
)
from relay.postgres.embedded.folder import DataFolder, Lock
from relay.postgres.migrate import migrate
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.triggers import SessionTriggers

log = structlog.get_logger()

DATABASE_NAME = "relay"

STABLE_AFTER = 60.0
"""Seconds of running after which Postgres is restarted without a pause."""

FIRST_RESTART_BACKOFF = 0.1
MAX_RESTART_BACKOFF = 5.0
"""Seconds between attempts to restart Postgres: doubled each time."""


@asynccontextmanager
async def open_embedded(
    data_dir: Path,
    *,
    postgres_bin: Path | None = None,
    exclusive: bool = False,
    connections: int = 0,
) -> AsyncIterator[str]:
    """Yield the URL of a Postgres with the tables of Better Auth and relay, ready for use.

    It allows the default number of connections, or `connections` if that is more.

    While this is open, a Postgres that dies is started again. `ConfigError` says what is wrong
    with the folder, the programs or the cluster; with `exclusive` also that another relay runs the
    Postgres of this folder, which may end at any moment.
    """
    folder, held = await _hold_or_find(data_dir)
    if isinstance(held, str):
        if exclusive:
            raise ConfigError(
                f"another relay runs its PostgreSQL in {folder.path} and will stop it when it"
                " ends: give each relay its own data_dir, or both the same database_url"
            )
        yield held
        return
    try:
        cluster = await _start(folder, postgres_bin, connections)
        try:
            await _create_tables(cluster)
            async with _kept_alive(cluster):
                url = cluster.url(DATABASE_NAME)
                folder.announce(url)
                try:
                    yield url
                finally:
                    folder.withdraw()
        finally:
            with trio.move_on_after(CLUSTER_STOP_TIMEOUT, shield=True):
                await cluster.stop()
    finally:
        held.close()


async def _hold_or_find(data_dir: Path) -> tuple[DataFolder, Lock | str]:
    """The folder, with its lock, or with the URL of the Postgres that another relay runs there."""
    try:
        folder = DataFolder.open(data_dir)
        with trio.move_on_after(START_TIMEOUT):
            while True:
                lock = Lock.try_acquire(folder.relay_lock)
                if lock is not None:
                    folder.withdraw()
                    return folder, lock
                url = folder.announced()
                if url is not None and await _answers(url):
                    return folder, url
                await trio.sleep(FILE_POLL_INTERVAL)
    except OSError as error:
        raise ConfigError(
            f"the data folder {data_dir} cannot be used ({error.strerror}): set data_dir to a"
            " folder that relay may write to"
        ) from None
    raise ConfigError(f"another relay holds {folder.path}, but its Postgres does not answer")


async def _answers(url: str) -> bool:
    try:
        async with open_database(url, pool_size=1) as database:
            await database.check()
    except StoreUnavailable:
        return False
    return True


async def _start(folder: DataFolder, postgres_bin: Path | None, connections: int) -> Cluster:
    log.info("starting the embedded Postgres", data_dir=str(folder.path))
    try:
        account = choose_account(folder.cluster)
        if account is not None:
            folder.admit(account)
        binaries = await trio.to_thread.run_sync(
            find_binaries, postgres_bin, account, folder.programs
        )
        cluster = Cluster(folder, account, binaries, connections)
        await cluster.create()
        await cluster.start()
    except OSError as error:
        raise ConfigError(f"the embedded Postgres cannot be started: {error}") from None
    return cluster


async def _create_tables(cluster: Cluster) -> None:
    """Create the database and its tables if need be."""

    def create_database() -> None:
        # Not with a `Database`: this cannot be done inside a transaction.
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            known = connection.execute(
                "select from pg_database where datname = %s", [DATABASE_NAME]
            )
            if known.fetchone() is None:
                connection.execute(f"create database {DATABASE_NAME}")

    try:
        await trio.to_thread.run_sync(create_database)
    except psycopg.OperationalError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"the embedded Postgres does not answer: {said}") from None
    tables = (resources.files(__package__) / "better_auth.sql").read_bytes()
    async with open_database(cluster.url(DATABASE_NAME), pool_size=1) as database:
        await database.transact_unhurried(lambda connection: connection.execute(tables))
        await migrate(database)
        sessions = await find_better_auth(database)
        await SessionTriggers(database, sessions.tables).install()


@asynccontextmanager
async def _kept_alive(cluster: Cluster) -> AsyncIterator[None]:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_alive, cluster)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is an implementation detail: let an error out as it came in.
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
    else:
        return
    raise error


async def _keep_alive(cluster: Cluster) -> None:
    """Restart Postgres whenever it ends; meanwhile queries raise `StoreUnavailable`."""
    pause = 0.0
    while True:
        began = trio.current_time()
        await cluster.ended()
        if trio.current_time() - began > STABLE_AFTER:
            pause = 0.0
        log.error("the embedded Postgres ended: starting it again", pause=pause)
        await trio.sleep(pause)
        pause = min(max(2 * pause, FIRST_RESTART_BACKOFF), MAX_RESTART_BACKOFF)
        try:
            await cluster.start()
        except (ConfigError, OSError) as error:
            log.error("the embedded Postgres did not start", reason=str(error))  # noqa: TRY400 (not a bug)
