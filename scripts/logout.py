"""How long a connection outlives its session; a part of `figures.py`."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta

import psycopg
import trio
from psycopg import sql
from target import Peer, Target

from relay.postgres.database import open_database
from relay.postgres.embedded.embedded import open_embedded
from relay.postgres.tables.sessions.sessions import BetterAuthSessions, find_better_auth

UNTIL_NOTICED = 20.0
"""Seconds after which a relay has seen that its triggers are gone."""


async def logout(relay: Target, rounds: int, others: int) -> None:
    """Sign out so many times, beside others that are connected, told by triggers and polled."""
    assert relay.data_dir is not None
    async with open_embedded(relay.data_dir) as url, open_database(url) as database:
        sessions = await find_better_auth(database)
        for number in range(others):
            token = await sessions.create(f"other-{number}@example.com", timedelta(hours=1))
            peer = await _join(relay)
            await peer.authenticate(token)
        with psycopg.connect(url, autocommit=True) as connection:
            await _measure("told by triggers", sessions, connection, relay, rounds)
            for event in ("update", "delete", "truncate"):
                for table in ("session", "user"):
                    connection.execute(
                        sql.SQL("drop trigger {} on {}").format(
                            sql.Identifier(f"relay_watch_{event}"), sql.Identifier("public", table)
                        )
                    )
            await trio.sleep(UNTIL_NOTICED)
            await _measure("polled every 0.5 s", sessions, connection, relay, rounds)


async def _measure(
    how: str,
    sessions: BetterAuthSessions,
    connection: psycopg.Connection[object],
    relay: Target,
    rounds: int,
) -> None:
    took = []
    for number in range(rounds):
        token = await sessions.create("figures@example.com", timedelta(hours=1))
        peer = await _join(relay)
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


async def _join(relay: Target) -> Peer:
    peer = await relay.connect()
    await peer.upgrade()
    return peer
