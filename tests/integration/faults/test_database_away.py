"""Postgres is killed, stopped, or slow: streams go on, whoever needs it is told to come back, and
all is well again by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.postgres.embedded.folder import DataFolder
from tests.integration.accounts import Accounts
from tests.integration.faults.postgres import own_place, own_postgres, postmaster, slow_way
from tests.integration.faults.scene import Seen, open_scene
from tests.integration.relay_process import start_relay

STATEMENT, CONNECT = 1.0, 1.0
"""Seconds, as they are set here; an answer takes about as long as both and two more."""
SETTINGS = ("--statement-timeout", f"{STATEMENT:g}", "--connect-timeout", f"{CONNECT:g}")
AWAY = {
    "phone": {"AUTH_UNAVAILABLE, close 4013"},
    "alert": {"STORE_UNAVAILABLE"},
    "renewal": {"AUTH_UNAVAILABLE"},
    "ready": {"503, database unavailable"},
}
"""How requests are answered while the database is away."""
DELAY = 0.3
"""Seconds that each answer of a slow database takes."""
SOON = 1.0
"""Seconds between two frames at most: less than any request waits for a database that hangs."""


def assert_away(seen: Seen) -> None:
    """Everybody was told, streams did not notice."""
    assert {name: set(each.counts) for name, each in seen.answers.items()} == AWAY
    assert seen.longest_gap < SOON
    assert max(each.longest for each in seen.answers.values()) < 10.0


async def test_killed_and_started_again() -> None:
    async with own_postgres() as postgres:
        with start_relay(*SETTINGS, database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                seen = await scene.through(postgres.killed(), seconds=1)
            assert 1 <= relay.log.count("the database does not do what it is asked") <= 5
    assert_away(seen)
    assert max(seen.recovery.values()) < 5


@pytest.mark.slow
async def test_stopped_and_going_on() -> None:
    async with own_postgres() as postgres:
        with start_relay(*SETTINGS, database_url=postgres.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                seen = await scene.through(postgres.stopped())
            assert "Postgres did not answer within 3 s" in relay.log
    assert_away(seen)
    assert max(seen.recovery.values()) < 10


@pytest.mark.slow
async def test_slower_than_anybody_waits() -> None:
    async with own_postgres() as postgres:
        with slow_way(postgres) as way, start_relay(*SETTINGS, database_url=way.url) as relay:
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                seen = await scene.through(way.slow(5))
    assert_away(seen)
    assert max(seen.recovery.values()) < 10


async def test_slow_is_slow_for_those_who_ask_and_for_nobody_else() -> None:
    async with own_postgres() as postgres:
        with (
            slow_way(postgres) as way,
            start_relay("--database-pool", "8", database_url=way.url) as relay,
        ):
            async with open_scene(relay, Accounts(postgres.url)) as scene:
                seen = await scene.through(way.slow(DELAY))
    answers = {name: set(each.counts) for name, each in seen.answers.items()}
    assert answers == {
        "phone": {"AUTHENTICATED"},
        "alert": {"ALERT_ACCEPTED"},
        "renewal": {"AUTHENTICATED"},
        "ready": {"200"},
    }
    assert seen.answers["alert"].longest > SOON
    assert seen.longest_gap < SOON


async def test_the_embedded_one_is_started_again_by_relay() -> None:
    with own_place() as place, start_relay(*SETTINGS, "--data-dir", str(place)) as relay:
        url = DataFolder.open(place).announced()
        assert url is not None

        @asynccontextmanager
        async def killed() -> AsyncIterator[None]:
            os.kill(postmaster(place), signal.SIGKILL)
            yield

        async with open_scene(relay, Accounts(url)) as scene:
            seen = await scene.through(killed())
    assert seen.longest_gap < SOON
    assert max(seen.recovery.values()) < 10
