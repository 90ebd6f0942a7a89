"""SIGTERM with many clients, of which a tenth does not answer; and while Postgres is stopped."""

from __future__ import annotations

import signal

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.faults.drain import MANY, drain
from tests.integration.faults.postgres import own_postgres
from tests.integration.peers import login, open_peer
from tests.integration.relay_process import RelayProcess, start_relay, until

DRAIN_TIMEOUT = 10.0
"""Seconds, as by default."""


@pytest.mark.parametrize("clients", [200, pytest.param(1000, marks=pytest.mark.slow)])
async def test_all_who_answer_are_told_and_the_others_hold_up_nothing(
    database_url: str, accounts: Accounts, clients: int
) -> None:
    silent = clients // 10
    with start_relay(*MANY, database_url=database_url) as relay:
        drained = await drain(relay, accounts, clients, silent)
    assert drained.told == clients - silent
    assert drained.exit_code == 0
    assert drained.ended < DRAIN_TIMEOUT


async def test_a_postgres_that_is_stopped_holds_up_neither_ready_nor_the_end() -> None:
    async with own_postgres() as postgres:
        token = Accounts(postgres.url).session()
        with start_relay(database_url=postgres.url) as relay:
            async with login(relay, token) as peer, open_peer(relay) as late, postgres.stopped():
                await late.send({"type": "auth", "token": token})
                await until_verifying(relay, 2)
                start = trio.current_time()
                assert (await relay.get("/ready")).status == 503
                assert trio.current_time() - start < 5  # a thread waits: no deadline could end it
                relay.signal(signal.SIGTERM)
                start = trio.current_time()
                assert (await peer.hear_end())[1] == (4012, "server restarting")
                assert await relay.ended() == 0
                assert trio.current_time() - start < DRAIN_TIMEOUT


async def until_verifying(relay: RelayProcess, number: int) -> None:
    async def so_many() -> bool:
        return bool((await relay.stats())["verifications"] >= number)

    await until(so_many)
