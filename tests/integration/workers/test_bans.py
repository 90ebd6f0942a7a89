"""Failed attempts to authenticate count for the machine, at whichever worker they are."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, open_peer
from tests.integration.relay_process import RelayProcess, start_relay, until

GUESSES = 6
SETTINGS = ("--workers", "2", "--failed-auth-rate", f"{GUESSES}/hour", "--log-level", "debug")


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*SETTINGS, database_url=database_url) as relay:
        yield relay


async def code(peer: Peer, token: str) -> str:
    return str((await peer.authenticate(token))["code"])


async def test_a_guesser_is_banned_by_both_workers_and_a_known_phone_by_neither(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("carrier")
    async with AsyncExitStack() as stack:

        async def open_at_each() -> tuple[Peer, Peer]:
            """A client at each worker: the next one is where there are fewer."""
            one = await stack.enter_async_context(open_peer(relay))
            return one, await stack.enter_async_context(open_peer(relay))

        await stack.enter_async_context(login(relay, token))
        await stack.enter_async_context(open_peer(relay))
        guessers = [each for _ in range(GUESSES // 2) for each in await open_at_each()]
        later = await open_at_each()
        phones = await open_at_each()
        for number, guesser in enumerate(guessers):
            assert await code(guesser, f"guess {number}") == "AUTH_FAILED"
        await until(lambda: "address banned" in relay.log)
        queries = (await relay.stats())["verification_queries"]
        for guesser in later:
            assert await code(guesser, "one more guess") == "RATE_LIMITED"
        assert (await relay.stats())["verification_queries"] == queries
        # The first of them is where the token is known from, the other is not.
        assert await code(phones[1], token) == "AUTHENTICATED"
        assert await code(phones[0], token) == "AUTHENTICATED"
    assert relay.log.count("address banned") == 1
    assert "guess" not in relay.log
    assert token not in relay.log


@pytest.mark.slow
async def test_a_worker_that_is_started_later_knows_the_bans_and_the_phones(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("carrier")
    async with login(relay, token):  # which ends what the test before has left
        pass
    bans = relay.log.count("address banned")
    for number in range(GUESSES):
        async with open_peer(relay) as guesser:
            assert await code(guesser, f"guess {number}") == "AUTH_FAILED"
    await until(lambda: relay.log.count("address banned") > bans)
    relay.signal(signal.SIGUSR2)
    await relay.until_logged("all workers were started anew")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(open_peer(relay)) for _ in range(4)]
        for guesser in peers[:2]:
            assert await code(guesser, "one more guess") == "RATE_LIMITED"
        for phone in peers[2:]:
            assert await code(phone, token) == "AUTHENTICATED"
