"""How long a connection outlives its session; a part of `figures.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import psycopg
import trio
from psycopg import sql

from relay.postgres.database import open_database
from relay.postgres.embedded import open_embedded
from relay.postgres.sessions import BetterAuthSessions, find_better_auth

UNTIL_NOTICED = 20.0
"""Seconds after which a relay has seen that its triggers are gone."""


class Peer(Protocol):
    """A client, as `figures.py` has them."""

    async def authenticate(self, token: str) -> None: ...

    async def receive_until(self, mark: bytes) -> int: ...


Join = Callable[[], Awaitable[Peer]]


async def logout(data_dir: Path, join: Join, rounds: int, others: int) -> None:
    """Sign out so many times, beside others that are connected, told by triggers and polled."""
    async with open_embedded(data_dir) as url, open_database(url) as database:
        sessions = await find_better_auth(database)
        for number in range(others):
            token = await sessions.create(f"other-{number}@example.com", timedelta(hours=1))
            peer = await join()
            await peer.authenticate(token)
        with psycopg.connect(url, autocommit=True) as connection:
            await _measure("told by triggers", sessions, connection, join, rounds)
            for event in ("update", "delete", "truncate"):
                for table in ("session", "user"):
                    connection.execute(
                        sql.SQL("drop trigger {} on {}").format(
                            sql.Identifier(f"relay_watch_{event}"), sql.Identifier("public", table)
                        )
                    )
            await trio.sleep(UNTIL_NOTICED)
            await _measure("polled every 0.5 s", sessions, connection, join, rounds)


async def _measure(
    how: str,
    sessions: BetterAuthSessions,
    connection: psycopg.Connection[object],
    join: Join,
    rounds: int,
) -> None:
    took = []
    for number in range(rounds):
        token = await sessions.create("figures@example.com", timedelta(hours=1))
        peer = await join()
        await peer.authenticate(token)
        await trio.sleep(0.3 + (number % 10) * 0.05)  # at no particular moment of the polling
        start = time.perf_counter()
        connection.execute("delete from session where token = %s", [token])
        await peer.receive_until(b"session revoked")  # the reason of the Close
        took.append((time.perf_counter() - start) * 1000)
    print(
        f"from logout to close, {how}, {rounds} times:"
        f" median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms"
    )
