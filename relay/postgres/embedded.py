"""A Postgres of relay's own: made, started, kept alive and stopped with relay. Floor 1.

Whoever holds the data folder's lock runs Postgres there. A command beside it (`relay token` beside
`relay serve`) gets the address of the one that runs. Postgres listens on a
Unix socket only, asks for a password, and ends with relay, however relay ends.
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
from relay.postgres.account import choose_account
from relay.postgres.binaries import find_binaries
from relay.postgres.cluster import POLL, START_PATIENCE, STOP_LIMIT, Cluster
from relay.postgres.database import open_database
from relay.postgres.folder import DataFolder, Lock
from relay.postgres.migrate import migrate
from relay.postgres.sessions import find_better_auth
from relay.postgres.triggers import SessionTriggers

log = structlog.get_logger()

DATABASE = "relay"

SETTLED = 60.0
"""Seconds after which a Postgres that ends is started again without a pause."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts to start Postgres again: each pause is twice the one before."""


@asynccontextmanager
async def open_embedded(
    data_dir: Path, *, postgres_bin: Path | None = None, alone: bool = False
) -> AsyncIterator[str]:
    """Yield the URL of a Postgres with Better Auth's and relay's tables, ready to be asked.

    While this is open, a Postgres that dies is started again. `ConfigError` says what is wrong
    with the folder, the programs or the cluster; `alone`, that another relay runs one there, for
    that may end at any moment.
    """
    folder, held = await _hold_or_find(data_dir)
    if isinstance(held, str):
        if alone:
            raise ConfigError(
                f"another relay runs its PostgreSQL in {folder.path}, and it ends with that one:"
                " give each a data_dir of its own, or both one database_url"
            )
        yield held
        return
    try:
        cluster = await _start(folder, postgres_bin)
        try:
            await _furnish(cluster)
            async with _kept_alive(cluster):
                url = cluster.url(DATABASE)
                folder.announce(url)
                try:
                    yield url
                finally:
                    folder.withdraw()
        finally:
            with trio.move_on_after(STOP_LIMIT, shield=True):
                await cluster.stop()
    finally:
        held.close()


async def _hold_or_find(data_dir: Path) -> tuple[DataFolder, Lock | str]:
    """The folder, with its lock or else the URL of the Postgres that another relay runs there."""
    try:
        folder = DataFolder.open(data_dir)
        with trio.move_on_after(START_PATIENCE):
            while True:
                lock = Lock.try_acquire(folder.relay_lock)
                if lock is not None:
                    folder.withdraw()
                    return folder, lock
                url = folder.announced()
                if url is not None and await _answers(url):
                    return folder, url
                await trio.sleep(POLL)
    except OSError as error:
        raise ConfigError(f"the data folder {data_dir} cannot be used: {error}") from None
    raise ConfigError(f"another relay holds {folder.path}, but its Postgres does not answer")


async def _answers(url: str) -> bool:
    try:
        async with open_database(url, pool_size=1) as database:
            await database.check()
    except StoreUnavailable:
        return False
    return True


async def _start(folder: DataFolder, postgres_bin: Path | None) -> Cluster:
    log.info("starting the embedded Postgres", data_dir=str(folder.path))
    try:
        account = choose_account(folder.cluster)
        if account is not None:
            folder.admit(account)
        binaries = await trio.to_thread.run_sync(
            find_binaries, postgres_bin, account, folder.programs
        )
        cluster = Cluster(folder, account, binaries)
        await cluster.create()
        await cluster.start()
    except OSError as error:
        raise ConfigError(f"the embedded Postgres cannot be started: {error}") from None
    return cluster


async def _furnish(cluster: Cluster) -> None:
    """See that the database and its tables are there."""

    def create_database() -> None:
        # Not a `Database`: this cannot be done inside a transaction.
        with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
            known = connection.execute("select from pg_database where datname = %s", [DATABASE])
            if known.fetchone() is None:
                connection.execute(f"create database {DATABASE}")

    try:
        await trio.to_thread.run_sync(create_database)
    except psycopg.OperationalError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"the embedded Postgres cannot be asked: {said}") from None
    tables = (resources.files(__package__) / "better_auth.sql").read_bytes()
    async with open_database(cluster.url(DATABASE), pool_size=1) as database:
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
        # That there is a nursery in here is nobody's business: an error comes out as it went in.
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
    else:
        return
    raise error


async def _keep_alive(cluster: Cluster) -> None:
    """Start Postgres again whenever it ends; meanwhile whoever asks gets `StoreUnavailable`."""
    pause = 0.0
    while True:
        began = trio.current_time()
        await cluster.ended()
        if trio.current_time() - began > SETTLED:
            pause = 0.0
        log.error("the embedded Postgres ended: starting it again", pause=pause)
        await trio.sleep(pause)
        pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        try:
            await cluster.start()
        except (ConfigError, OSError) as error:
            log.error("the embedded Postgres did not start", reason=str(error))  # noqa: TRY400 (it is no bug)
