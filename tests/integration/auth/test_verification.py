"""A real relay verifies tokens against real tables."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta

import psycopg
import pytest

from tests.integration.accounts import HOUR, Accounts
from tests.integration.peers import Peer, login, open_peer
from tests.integration.relay_process import RelayProcess, start_relay, until

MANY = 300


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    """One that waits for tokens, however busy this machine is."""
    with start_relay("--auth-timeout", "120", database_url=database_url) as relay:
        yield relay


@contextmanager
def sessions_locked(accounts: Accounts) -> Iterator[None]:
    """No query about sessions returns within the block."""
    with psycopg.connect(accounts.url) as connection:
        connection.execute("lock table session")
        yield


async def send_auth(relay: RelayProcess, peers: list[Peer], tokens: list[str]) -> None:
    """Send all tokens, and wait until the relay has begun to verify them."""
    before = (await relay.stats())["verifications"]
    for peer, token in zip(peers, tokens, strict=True):
        await peer.send({"type": "auth", "token": token})

    async def begun() -> bool:
        return bool((await relay.stats())["verifications"] == before + len(tokens))

    await until(begun)


async def refused(relay: RelayProcess, token: str) -> bool:
    """Whether a token gets what a wrong one should."""
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        (error,), close = await peer.hear_end()
        return error["code"] == "AUTH_FAILED" and close == (1008, "Authentication failed")


async def test_a_session_says_whose_it_is(relay: RelayProcess, accounts: Accounts) -> None:
    token = accounts.session("ann", lasts=HOUR)
    ((session_id, expires_at),) = accounts.execute(
        'select id, floor(extract(epoch from "expiresAt") * 1000) from session where token = %s',
        token,
    )
    async with open_peer(relay) as peer:
        reply = await peer.authenticate(token)
    assert (reply["userId"], reply["sessionId"]) == ("ann", session_id)
    assert reply["expiresAt"] == expires_at


async def test_unknown_and_expired_sessions_are_refused(
    relay: RelayProcess, accounts: Accounts
) -> None:
    assert await refused(relay, secrets.token_urlsafe(24))
    assert await refused(relay, accounts.session(lasts=timedelta(seconds=-1)))


ODD_TOKENS = [
    "a\0b",
    "' or 1=1; drop table session; --",
    '"; select pg_sleep(10); --',
    "%s %(token)s {} \\",
    "{a,b}",
    "\u202e\U0001f511 é",
    "relay_service_" + "x" * 43,
    "relay_service_\0",
    "x" * 8192,
]


async def test_odd_tokens_are_just_wrong_and_spoil_nothing_for_others(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session()
    async with AsyncExitStack() as stack:
        first, good, *odd = [
            await stack.enter_async_context(open_peer(relay)) for _ in range(2 + len(ODD_TOKENS))
        ]
        with sessions_locked(accounts):
            # The others wait for the answer to the first, and so share one query.
            await send_auth(relay, [first], [token])
            await send_auth(relay, [good, *odd], [token, *ODD_TOKENS])
        assert (await good.receive())["code"] == "AUTHENTICATED"
        for peer in odd:
            (error,), close = await peer.hear_end()
            assert error["code"] == "AUTH_FAILED"
            assert close == (1008, "Authentication failed")


async def test_many_that_authenticate_at_once_are_a_few_queries(
    relay: RelayProcess, accounts: Accounts
) -> None:
    users = [f"user-{number}" for number in range(MANY)]
    tokens = accounts.sessions(users)
    before = await relay.stats()
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(open_peer(relay)) for _ in range(MANY)]
        with sessions_locked(accounts):
            await send_auth(relay, peers, tokens)
        assert [(await peer.receive())["userId"] for peer in peers] == users
        after = await relay.stats()
        assert after["authenticated"] - before["authenticated"] == MANY
    assert after["verifications"] - before["verifications"] == MANY
    assert after["verification_queries"] - before["verification_queries"] <= 3


async def test_a_service_is_known_by_its_token(relay: RelayProcess, accounts: Accounts) -> None:
    async with open_peer(relay) as peer:
        reply = await peer.authenticate(accounts.service("*"))
    assert reply["code"] == "AUTHENTICATED"
    assert {"userId", "sessionId", "expiresAt"}.isdisjoint(reply)


async def test_a_session_that_is_deleted_does_not_get_in_again(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, other = accounts.sessions(["ann", "ann"])
    async with login(relay, token), login(relay, other) as peer:
        accounts.execute("delete from session where token = %s", token)
        assert await refused(relay, token)
        await peer.send({"type": "auth", "token": token})
        (error,), close = await peer.hear_end()
        assert (error["code"], close[0]) == ("AUTH_FAILED", 1008)


async def test_a_postgres_that_hangs_is_not_waited_for_beyond_the_deadline(
    accounts: Accounts,
) -> None:
    token = accounts.session()
    with start_relay("--auth-timeout", "1", database_url=accounts.url) as relay:
        async with open_peer(relay) as peer:
            with sessions_locked(accounts):
                await peer.send({"type": "auth", "token": token})
                (error,), close = await peer.hear_end()
        assert error["code"] == "AUTH_UNAVAILABLE"
        assert error["retryAfter"] > 0
        assert close == (4013, "try again later")
        async with login(relay, token):
            pass
