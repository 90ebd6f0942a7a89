"""While nobody is connected, relay leaves the database alone: a serverless one may sleep."""

from __future__ import annotations

import time

import psycopg
import pytest
import trio

from relay.auth.session_watch import IDLE_AFTER
from relay.postgres.database import Connection, Database, open_database
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import start_relay, until


def last_query(url: str) -> float:
    """Seconds since another connection to this database began its last query."""
    with psycopg.connect(url) as connection:
        [(age,)] = connection.execute(
            "select extract(epoch from clock_timestamp() - max(query_start))::float8"
            " from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and backend_type = 'client backend'"
        ).fetchall()
    return float(age)


@pytest.mark.slow
async def test_a_relay_without_clients_asks_the_database_nothing(postgres_url: str) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    with start_relay(database_url=postgres_url) as relay:
        async with login(relay, token) as phone:
            await phone.register(stream_id)
            await until(lambda: last_query(postgres_url) < 2)
        await trio.sleep(2 * IDLE_AFTER + 5)
        assert last_query(postgres_url) > 5
        # Who connects finds everything as it was, and what SQL raises meanwhile is noticed.
        async with login(relay, token) as phone:
            await phone.register(stream_id)
            accounts.execute("select relay.raise_alert(%s, 'Smoke')", stream_id)
            assert (await phone.receive_type("alert"))["message"] == "Smoke"


async def test_an_alert_from_sql_is_stored_while_nobody_is_connected(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute("insert into relay.streams (stream_id, owner_id) values ('porch', 'ann')")
    with start_relay(database_url=postgres_url):
        accounts.execute("select relay.raise_alert('porch', 'Smoke')")
        await until(lambda: bool(accounts.execute("select alert_id from relay.alerts")))


async def test_connections_that_are_not_used_are_closed(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(database.transact, hold_on)
        assert len(database._idle) == 3
        await database.check()
        database._close_unused(time.monotonic() - 60)
        assert len(database._idle) == 3
        open_ones = [connection for connection, _ in database._idle]
        database._close_unused(time.monotonic() + 1)
        assert database._idle == []
        assert all(connection.closed for connection in open_ones)
        await database.check()


def hold_on(connection: Connection) -> None:
    connection.execute("select pg_sleep(0.3)")


def test_a_pool_without_connections_has_none_to_close(postgres_url: str) -> None:
    async def close() -> Database:
        async with open_database(postgres_url) as database:
            database._close_unused(time.monotonic())
            return database

    assert trio.run(close)._idle == []
