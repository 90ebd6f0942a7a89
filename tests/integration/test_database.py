"""Transactions in worker threads: what comes back, what is lost, and what a cancelled one leaves."""

from __future__ import annotations

import random
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from relay.errors import ConfigError, StoreUnavailable
from relay.postgres.database import open_database

if TYPE_CHECKING:
    from relay.postgres.database import Connection, Database


def ask(question: str, *values: object) -> Any:
    """Work that asks for one value."""

    def work(connection: Connection) -> Any:
        row = connection.execute(question.encode(), values).fetchone()
        return None if row is None else row[0]

    return work


def sleep(seconds: float) -> Any:
    return ask("select pg_sleep(%s)", seconds)


async def others(url: str) -> list[str]:
    """What the other sessions of this database are doing."""

    def work(connection: Connection) -> list[str]:
        rows = connection.execute(
            "select state || ': ' || query from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " and backend_type = 'client backend'"
        )
        return [line for (line,) in rows]

    async with open_database(url, pool_size=1) as database:
        return await database.transact(work)


async def all_whole(database: Database, size: int) -> None:
    """Every connection of the pool can be used at the same moment, in a transaction of its own."""
    backends: list[int] = []
    together = ask("select pg_backend_pid() from pg_sleep(0.05)")

    async def one() -> None:
        backends.append(await database.transact(together))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(one)
    assert len(set(backends)) == size


async def test_work_is_committed_before_transact_returns(empty_postgres_url: str) -> None:
    async with (
        open_database(empty_postgres_url) as database,
        open_database(empty_postgres_url) as another,
    ):
        await database.transact(ask("create table seen (n int)"))
        assert await database.transact(ask("insert into seen values (1) returning n")) == 1
        assert await another.transact(ask("select sum(n) from seen")) == 1


async def test_an_error_of_the_work_comes_out_and_undoes_it(empty_postgres_url: str) -> None:
    def work(connection: Connection) -> None:
        connection.execute("insert into seen values (1)")
        raise ZeroDivisionError

    async with open_database(empty_postgres_url, pool_size=1) as database:
        await database.transact(ask("create table seen (n int)"))
        backend = await database.transact(ask("select pg_backend_pid()"))
        with pytest.raises(ZeroDivisionError):
            await database.transact(work)
        with pytest.raises(psycopg.errors.UndefinedTable):
            await database.transact(ask("select * from nowhere"))
        assert await database.transact(ask("select count(*) from seen")) == 0
        assert await database.transact(ask("select pg_backend_pid()")) == backend


async def test_a_failure_that_the_work_swallowed_is_not_taken_for_a_commit(
    empty_postgres_url: str,
) -> None:
    def work(connection: Connection) -> None:
        try:
            connection.execute("select 1/0")
        except psycopg.DataError:
            pass

    async with open_database(empty_postgres_url) as database:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await database.transact(work)


async def test_times_come_in_utc_whatever_the_role_is_set_to(empty_postgres_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_postgres_url)["dbname"]
    async with open_database(empty_postgres_url) as database:
        for setting in ("timezone = 'Asia/Kathmandu'", "datestyle = 'SQL, DMY'"):
            await database.transact(ask(f"alter database {name} set {setting}"))
    async with open_database(empty_postgres_url) as database:
        noon = await database.transact(ask("select timestamptz '2030-01-02 12:00:00+00'"))
        assert noon.isoformat() == "2030-01-02T12:00:00+00:00"


async def test_each_statement_sees_what_was_committed_before_it(empty_postgres_url: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(empty_postgres_url)["dbname"]
    async with open_database(empty_postgres_url) as database:
        await database.transact(
            ask(f"alter database {name} set default_transaction_isolation = 'serializable'")
        )
    async with open_database(empty_postgres_url) as database:
        assert await database.transact(ask("show transaction_isolation")) == "read committed"
