"""A real Postgres for tests: one server for each process of the run, one database for each test.
And a real relay: a process of its own for each module that wants one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import trio
from attrs import frozen
from playwright.sync_api import Browser
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.postgres.embedded.embedded import open_embedded
from tests.integration import forked
from tests.integration.accounts import Accounts, keep_connection
from tests.integration.browser import run_chromium
from tests.integration.node import find_node
from tests.integration.relay_process import RelayProcess, start_relay


def pytest_configure(config: pytest.Config) -> None:
    """The whole run starts some of all relays as their users do."""
    forked.everything = bool(config.getoption("all"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a process, which can have no second one: each test opens pages
    of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="relay-test-") as folder,
        run_chromium(Path(folder)) as browser,
    ):
        yield browser


@frozen
class PostgresServer:
    """relay's own embedded Postgres, in which tests make databases."""

    url: str
    _connection: psycopg.Connection
    """To the database `postgres`, with autocommit."""

    @contextmanager
    def database(self, template: str) -> Iterator[str]:
        """The URL of a new database, which is gone afterwards."""
        name = sql.Identifier(f"test_{uuid4().hex}")
        # Several times faster; older ones know no other.
        known = self._connection.info.server_version >= 150_000
        strategy = sql.SQL("strategy file_copy" if known else "")
        self.execute(
            sql.SQL("create database {} template {} {}").format(
                name, sql.Identifier(template), strategy
            )
        )
        url = self.url_of(name.as_string().strip('"'))
        try:
            with keep_connection(url):
                yield url
        finally:
            self.execute(sql.SQL("drop database {} with (force)").format(name))

    def make_cheap(self) -> None:
        """Neither what a crash would lose nor who could guess passwords is of interest here."""
        self._connection.execute("alter system set fsync = off")
        if self._connection.info.server_version >= 160_000:
            # A client's 4096 rounds take longer than all else that it does to connect.
            password = str(conninfo_to_dict(self.url)["password"])
            self._connection.execute("alter system set scram_iterations = 1")
            self._connection.execute("set scram_iterations = 1")
            self._connection.execute(
                sql.SQL("alter role current_user password {}").format(sql.Literal(password))
            )
        self._connection.execute("select pg_reload_conf()")

    def url_of(self, database: str) -> str:
        return url_of(self.url, database)

    def execute(self, *statements: sql.Composed | sql.SQL) -> None:
        for statement in statements:
            self._connection.execute(statement)


def url_of(url: str, database: str) -> str:
    return url.replace("/relay?", f"/{database}?")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    opened: Future[tuple[str, Callable[[], None]]] = Future()
    with (
        tempfile.TemporaryDirectory(prefix="relay-test-") as folder,
        ThreadPoolExecutor(1) as thread,
    ):
        ended = thread.submit(trio.run, _keep_open, Path(folder), opened)
        futures: list[Future[Any]] = [opened, ended]
        wait(futures, return_when=FIRST_COMPLETED)
        if ended.done():
            ended.result()
        url, close = opened.result()
        try:
            with closing(psycopg.connect(url_of(url, "postgres"), autocommit=True)) as connection:
                server = PostgresServer(url, connection)
                server.make_cheap()
                yield server
        finally:
            close()
            ended.result()


async def _keep_open(folder: Path, opened: Future[tuple[str, Callable[[], None]]]) -> None:
    async with open_embedded(folder) as url:
        end = trio.Event()
        token = trio.lowlevel.current_trio_token()
        opened.set_result((url, partial(token.run_sync_soon, end.set)))
        await end.wait()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with Better Auth's tables and relay's."""
    with postgres_server.database("relay") as url:
        yield url


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.database("template0") as url:
        yield url


@pytest.fixture(scope="module")
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with all tables, shared by the tests of a module."""
    with postgres_server.database("relay") as url:
        yield url


@pytest.fixture
def away(database_url: str) -> Iterator[Callable[[], Any]]:
    """A way to shut the database to everybody, for as long as a `with` block lasts."""
    name = sql.Identifier(str(conninfo_to_dict(database_url)["dbname"]))

    def allow(value: str) -> None:
        with psycopg.connect(
            make_conninfo(database_url, dbname="postgres"), autocommit=True
        ) as connection:
            connection.execute(
                sql.SQL("alter database {} allow_connections {}").format(name, sql.SQL(value))
            )
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s",
                [name.as_string().strip('"')],
            )

    @asynccontextmanager
    async def shut() -> AsyncIterator[None]:
        allow("false")
        try:
            yield
        finally:
            allow("true")

    yield shut
    allow("true")


@pytest.fixture(scope="module")
def accounts(database_url: str) -> Accounts:
    return Accounts(database_url)


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    """A relay that the tests of a module share."""
    with start_relay(database_url=database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def node() -> str:
    return find_node()


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files, where also the user nobody may pass, as whom root's Postgres runs."""
    path = Path(tempfile.mkdtemp(prefix="relay-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)
