"""What tests ask a database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import trio
from psycopg.conninfo import conninfo_to_dict

from relay.postgres.database import Connection, Database, open_database
from tests.integration.relay_process import until


def do(*statements: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        for statement in statements:
            connection.execute(statement.encode())

    return work


def ask(question: str, *values: object) -> Callable[[Connection], Any]:
    """Work that asks for one value."""

    def work(connection: Connection) -> Any:
        return connection.execute(question.encode(), values).fetchall()[0][0]

    return work


def sleep(seconds: float) -> Callable[[Connection], Any]:
    return ask("select pg_sleep(%s)", seconds)


my_backend = ask("select pg_backend_pid()")


def database_name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


async def what_others_do(url: str) -> list[str]:
    """The state of each other session in this database."""

    def work(connection: Connection) -> list[str]:
        rows = connection.execute(
            "select state from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        return [state for (state,) in rows]

    async with open_database(url, pool_size=1) as database:
        return await database.transact(work)


async def until_nobody_else_is_there(url: str) -> None:
    """The server notices a moment later that a connection was closed."""

    async def is_alone() -> bool:
        return not await what_others_do(url)

    await until(is_alone)


async def check_whole(database: Database, size: int) -> None:
    """So many transactions run at the same moment, each on a connection of its own."""
    backends: set[int] = set()
    together = threading.Barrier(size)

    def work(connection: Connection) -> None:
        together.wait(timeout=5)
        backends.add(my_backend(connection))

    async def one() -> None:
        await database.transact(work)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(one)
    assert len(backends) == size
