"""Transactions in worker threads: what comes back, what is lost, what a cancelled one leaves."""

from __future__ import annotations

import math
import os
import random
import signal
import socket
from contextlib import suppress

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from relay.errors import ConfigError, StoreForbids, StoreLacks, StoreRejects, StoreUnavailable
from relay.postgres.database import Connection, Database, open_database
from tests.integration.database_queries import (
    ask,
    check_whole,
    database_name,
    do,
    my_backend,
    sleep,
    until_nobody_else_is_there,
    what_others_do,
)


async def test_work_is_committed_before_transact_returns(empty_postgres_url: str) -> None:
    async with open_database(empty_postgres_url) as one, open_database(empty_postgres_url) as other:
        await one.transact(do("create table seen (n int)"))
        assert await one.transact(ask("insert into seen values (%s) returning n", 7)) == 7
        assert await other.transact(ask("select sum(n) from seen")) == 7


async def test_an_error_of_the_work_comes_out_and_undoes_the_work(empty_postgres_url: str) -> None:
    def fail(connection: Connection) -> None:
        connection.execute("insert into seen values (1)")
        raise ZeroDivisionError

    async with open_database(empty_postgres_url, pool_size=1) as database:
        await database.transact(do("create table seen (n int)"))
        backend = await database.transact(my_backend)
        with pytest.raises(ZeroDivisionError):
            await database.transact(fail)
        with pytest.raises(StoreLacks):
            await database.transact(do("insert into seen values (1)", "select * from nowhere"))
        assert await database.transact(ask("select count(*) from seen")) == 0
        assert await database.transact(my_backend) == backend


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("53100", "could not extend file: No space left on device"),
        ("XX000", "could not extend file: Disk quota exceeded"),
        ("42501", "could not open file: Read-only file system"),
        ("XX001", "invalid page in block 7"),
        ("58030", "could not read block 7: Input/output error"),
    ],
)
async def test_a_server_that_cannot_write_is_as_good_as_away(
    empty_postgres_url: str, code: str, said: str
) -> None:
    raise_it = f"do $$ begin raise exception '{said}' using errcode = '{code}'; end $$"
    async with open_database(empty_postgres_url) as database:
        told: list[str] = []
        database.on_failure = told.append
        with pytest.raises(StoreUnavailable, match=said):
            await database.transact(do(raise_it))
        assert len(told) == 1
        await database.check()


async def test_what_a_role_may_not_do_is_said_and_is_no_reason_to_try_again(
    empty_postgres_url: str,
) -> None:
    forbidden = ("create role nobody_in_particular", "set local role nobody_in_particular")
    async with open_database(empty_postgres_url) as database:
        with pytest.raises(StoreForbids, match=r"^permission denied for schema public$"):
            await database.transact(do(*forbidden, "create table public.mine (n int)"))
        await database.check()


async def test_a_failure_that_the_work_hid_is_not_taken_for_a_commit(
    empty_postgres_url: str,
) -> None:
    def hide(connection: Connection) -> None:
        with suppress(psycopg.DataError):
            connection.execute("select 1 / 0")

    async with open_database(empty_postgres_url) as database:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await database.transact(hide)


async def test_a_commit_that_fails_says_why(empty_postgres_url: str) -> None:
    """As one does that a deferred constraint fails, or whose connection dies just then."""

    def lose_it(connection: Connection) -> None:
        connection.execute("insert into seen values (2)")
        with socket.socket(fileno=os.dup(connection.fileno())) as mine:
            mine.shutdown(socket.SHUT_RDWR)

    async with open_database(empty_postgres_url, pool_size=1) as database:
        await database.transact(
            do("create table seen (n int unique deferrable initially deferred)")
        )
        with pytest.raises(StoreRejects, match="UniqueViolation"):
            await database.transact(do("insert into seen values (1), (1)"))
        with pytest.raises(StoreUnavailable):
            await database.transact(lose_it)
        assert await database.transact(ask("select count(*) from seen")) == 0


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
async def test_without_another_thread_the_place_in_the_pool_is_free_again(
    empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_thread(*_: object) -> None:
        raise error

    async with open_database(empty_postgres_url, pool_size=1) as database:
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "start_thread_soon", no_thread)
            with pytest.raises(type(error)):
                await database.check()
        with trio.fail_after(5):
            await database.check()


async def test_defaults_of_the_database_change_nothing(empty_postgres_url: str) -> None:
    name = database_name(empty_postgres_url)
    async with open_database(empty_postgres_url) as database:
        await database.transact(
            do(
                f"alter database {name} set timezone = 'Asia/Kathmandu'",
                f"alter database {name} set datestyle = 'SQL, DMY'",
                f"alter database {name} set default_transaction_isolation = 'serializable'",
                f"alter database {name} set statement_timeout = 1",
            )
        )
    async with open_database(empty_postgres_url) as database:
        noon = await database.transact(ask("select timestamptz '2030-01-02 12:00:00+00'"))
        assert noon.isoformat() == "2030-01-02T12:00:00+00:00"
        assert await database.transact(ask("show transaction_isolation")) == "read committed"
        await database.transact_unhurried(sleep(0.05))


async def test_a_statement_that_takes_too_long_is_ended(empty_postgres_url: str) -> None:
    async with open_database(empty_postgres_url, statement_timeout=0.1) as database:
        with trio.fail_after(5), pytest.raises(StoreUnavailable, match="statement timeout"):
            await database.transact(sleep(60))
        assert await what_others_do(empty_postgres_url) == ["idle"]
        await database.check()


async def test_connections_that_died_while_idle_are_not_noticed(empty_postgres_url: str) -> None:
    """As after a restart of Postgres: the first transaction works."""
    async with open_database(empty_postgres_url) as database:
        await check_whole(database, 4)
        await database.transact(
            do(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        )
        await check_whole(database, 4)


async def test_a_connection_that_dies_at_work_is_replaced(empty_postgres_url: str) -> None:
    async with open_database(empty_postgres_url, pool_size=1) as database:
        with pytest.raises(StoreUnavailable):
            await database.transact(ask("select pg_terminate_backend(pg_backend_pid())"))
        await database.check()


async def test_work_that_died_is_not_done_twice(empty_postgres_url: str) -> None:
    attempts: list[Connection] = []

    def die(connection: Connection) -> None:
        attempts.append(connection)
        connection.execute("select pg_terminate_backend(pg_backend_pid())")

    async with open_database(empty_postgres_url) as database:
        await database.check()
        with pytest.raises(StoreUnavailable):
            await database.transact(die)
    assert len(attempts) == 1


async def test_the_pool_is_never_larger_than_it_was_told(empty_postgres_url: str) -> None:
    async with open_database(empty_postgres_url, pool_size=2) as database:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(database.transact, sleep(0.01))
        assert await what_others_do(empty_postgres_url) == ["idle"] * 2
    await until_nobody_else_is_there(empty_postgres_url)


async def test_a_cancelled_statement_ends_at_once_on_the_server_too(
    empty_postgres_url: str,
) -> None:
    async with open_database(empty_postgres_url, statement_timeout=60) as database:
        with trio.fail_after(5):
            with trio.move_on_after(0.1) as scope:
                await database.transact(sleep(60))
            assert scope.cancelled_caught
            assert "active" not in await what_others_do(empty_postgres_url)


async def test_a_cancelled_work_of_many_statements_ends_too(empty_postgres_url: str) -> None:
    """A cancel request between two statements has no effect, so one is not enough."""

    def work(connection: Connection) -> None:
        for _ in range(10_000):
            connection.execute("select pg_sleep(0.001)")

    async with open_database(empty_postgres_url) as database:
        with trio.fail_after(3):
            with trio.move_on_after(0.1):
                await database.transact(work)
            assert "active" not in await what_others_do(empty_postgres_url)


async def test_hundreds_of_random_cancellations_leave_nothing(empty_postgres_url: str) -> None:
    chance = random.Random(20)
    outcomes = {"done": 0, "cancelled": 0}

    async def one(database: Database, patience: float, statements: int) -> None:
        with trio.move_on_after(patience) as scope:
            await database.transact(
                do("insert into seen values (1)", *["select pg_sleep(0.002)"] * statements)
            )
        outcomes["cancelled" if scope.cancelled_caught else "done"] += 1

    async with open_database(empty_postgres_url) as database:
        await database.transact(do("create table seen (n int)"))
        for _ in range(50):
            async with trio.open_nursery() as nursery:
                for patience in (0, *(chance.uniform(0, 0.05) for _ in range(8)), math.inf):
                    nursery.start_soon(one, database, patience, chance.randrange(1, 10))
        states = await what_others_do(empty_postgres_url)
        assert set(states) <= {"idle"}
        assert len(states) <= 4
        await check_whole(database, 4)
        assert outcomes["cancelled"] >= 50
        assert outcomes["done"] >= 50
        # A transaction may be committed just when its task is cancelled; never a half of one.
        assert await database.transact(ask("select sum(n) from seen")) >= outcomes["done"]
    await until_nobody_else_is_there(empty_postgres_url)


async def test_a_server_that_stops_answering_is_given_up(empty_postgres_url: str) -> None:
    async with open_database(
        empty_postgres_url, pool_size=1, statement_timeout=0.2, connect_timeout=0.2
    ) as database:
        backend = await database.transact(my_backend)
        os.kill(backend, signal.SIGSTOP)
        try:
            with trio.fail_after(6), pytest.raises(StoreUnavailable, match="did not answer"):
                await database.check()
            await database.check()
        finally:
            os.kill(backend, signal.SIGCONT)


async def test_a_server_that_never_greets_is_given_up_and_can_be_abandoned() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with (
        listener,
        open_database(f"postgresql://relay@127.0.0.1:{port}/relay", connect_timeout=2) as database,
    ):
        with trio.fail_after(1), trio.move_on_after(0.1):
            await database.check()
        with trio.fail_after(8), pytest.raises(StoreUnavailable):
            await database.check()


async def test_nobody_listening_is_store_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with open_database(f"postgresql://relay@127.0.0.1:{port}/relay") as database:
            with pytest.raises(StoreUnavailable, match="refused"):
                await database.check()


async def test_a_wrong_password_is_in_no_error(empty_postgres_url: str) -> None:
    password = conninfo_to_dict(empty_postgres_url)["password"]
    async with open_database(
        empty_postgres_url.replace(str(password), "correct%20horse")
    ) as database:
        with pytest.raises(StoreUnavailable, match="password authentication failed") as caught:
            await database.check()
        assert "horse" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert "horse" not in repr(database)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://relay:horse%battery@localhost/relay",
        "postgresql://relay:horse@localhost:port/relay?x",
        "postgresql://relay:horse@[::1/relay",
        "mysql://relay:horse@localhost/relay",
        "horse",
    ],
)
async def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_database(url):
            raise AssertionError
    assert "horse" not in str(caught.value)
    assert "postgresql://" in str(caught.value)
