"""An issuer's keys: fetched seldom, fresh enough, and available while the issuer is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from joserfc.jwk import Key

from relay.auth.methods.jwks import (
    JWKS_MAX_AGE,
    JWKS_MIN_INTERVAL,
    JWKS_REFRESH_INTERVAL,
    JWKS_TIMEOUT,
    MAX_JWKS_KEYS,
    KeySet,
)
from relay.errors import StoreUnavailable
from tests.unit.memory.http_client import URL, MemoryHttpClient
from tests.unit.tokens import EC, ED, RSA, public

pytestmark = pytest.mark.mock_clock


@asynccontextmanager
async def running(server: MemoryHttpClient) -> AsyncIterator[KeySet]:
    keys = KeySet(server, URL)
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        yield keys
        nursery.cancel_scope.cancel()


async def finds(keys: KeySet, key: Key = EC, kid: str | None = None) -> bool | str:
    """Whether the key is found; "unavailable" if that cannot be told."""
    algorithm = {"EC": "ES256", "RSA": "RS256", "OKP": "EdDSA"}[key.key_type]
    try:
        return await keys.find(algorithm, key.kid if kid is None else kid) is not None
    except StoreUnavailable:
        return "unavailable"


async def test_keys_are_fetched_once_for_many_tokens() -> None:
    server = MemoryHttpClient(public(EC, RSA), delay=1)
    async with running(server) as keys, trio.open_nursery() as nursery:
        found: list[bool | str] = []

        async def find(key: Key) -> None:
            found.append(await finds(keys, key))

        for _ in range(50):
            nursery.start_soon(find, EC)
            nursery.start_soon(find, RSA)
        await trio.sleep(JWKS_REFRESH_INTERVAL / 2)
        assert found == [True] * 100
        # The first fetch began before the tokens came; they waited for the second.
        assert len(server.asked) <= 2


async def test_a_new_key_is_found_when_its_first_token_comes() -> None:
    server = MemoryHttpClient(public(EC))
    async with running(server) as keys:
        assert await finds(keys, EC)
        await trio.sleep(60)
        server.answer = public(RSA)
        started = trio.current_time()
        assert await finds(keys, RSA) is True
        assert trio.current_time() == started
        assert await finds(keys, EC) is False


async def test_made_up_key_ids_cause_no_flood_and_are_all_told_that_they_are_wrong() -> None:
    server = MemoryHttpClient(public(EC))
    async with running(server) as keys:
        assert await finds(keys, EC)
        before, started = len(server.asked), trio.current_time()
        outcomes: list[bool | str] = []

        async def guess(number: int) -> None:
            await trio.sleep(number * 0.01)
            outcomes.append(await finds(keys, EC, f"made-up-{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(3000):
                nursery.start_soon(guess, number)
        assert outcomes == [False] * 3000
        seconds = trio.current_time() - started
        assert len(server.asked) - before <= seconds / JWKS_MIN_INTERVAL + 1


async def test_known_keys_do_not_wait_behind_made_up_ones() -> None:
    server = MemoryHttpClient(public(EC))
    async with running(server) as keys, trio.open_nursery() as nursery:
        assert await finds(keys, EC)
        nursery.start_soon(finds, keys, EC, "made-up")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        assert await finds(keys, EC)
        assert trio.current_time() == started


async def test_a_client_that_leaves_delays_no_fetch() -> None:
    server = MemoryHttpClient(public(EC), delay=1)
    async with running(server) as keys:
        assert await finds(keys, EC)
        await trio.sleep(JWKS_MIN_INTERVAL)
        server.answer = public(RSA)
        with trio.move_on_after(0.5):
            await finds(keys, EC, "made-up")
        started = trio.current_time()
        assert await finds(keys, RSA) is True
        assert trio.current_time() - started <= JWKS_MIN_INTERVAL + 1


async def test_a_withdrawn_key_is_accepted_until_the_next_fetch_only() -> None:
    server = MemoryHttpClient(public(EC, RSA))
    async with running(server) as keys:
        assert await finds(keys, EC)
        server.answer = public(RSA)
        await trio.sleep(JWKS_REFRESH_INTERVAL + 1)
        assert await finds(keys, EC) is False


async def test_old_keys_are_used_while_the_issuer_is_away_but_not_forever() -> None:
    server = MemoryHttpClient(public(EC))
    async with running(server) as keys:
        assert await finds(keys, EC)
        server.away = True
        await trio.sleep(JWKS_MAX_AGE - JWKS_REFRESH_INTERVAL)
        assert await finds(keys, EC) is True
        assert await finds(keys, RSA) == "unavailable"
        await trio.sleep(JWKS_REFRESH_INTERVAL + 1)
        assert await finds(keys, EC) == "unavailable"
        server.away = False
        await trio.sleep(2 * JWKS_MIN_INTERVAL)
        assert await finds(keys, EC) is True


async def test_an_issuer_that_is_away_from_the_start_makes_no_token_wrong() -> None:
    server = MemoryHttpClient(public(EC), away=True)
    async with running(server) as keys:
        assert await finds(keys, EC) == "unavailable"
        server.away = False
        await trio.sleep(2 * JWKS_MIN_INTERVAL)
        assert await finds(keys, EC) is True


async def test_an_issuer_that_is_away_is_asked_no_more_often_than_one_that_is_there() -> None:
    server = MemoryHttpClient(away=True)
    async with running(server) as keys:
        for _ in range(600):
            assert await finds(keys, EC) == "unavailable"
            await trio.sleep(0.1)
        assert len(server.asked) <= 60 / JWKS_MIN_INTERVAL + 1


async def test_a_slow_issuer_is_abandoned() -> None:
    server = MemoryHttpClient(public(EC), delay=3600)
    async with running(server) as keys:
        started = trio.current_time()
        assert await finds(keys, EC) == "unavailable"
        assert trio.current_time() - started <= 2 * JWKS_TIMEOUT + JWKS_MIN_INTERVAL


GARBAGE = [
    b"",
    b"\xff",
    b"<html>",
    b"[" * 100_000,
    b"null",
    b"{}",
    b'{"keys": 5}',
    b'{"keys": {}}',
    {"keys": [{}] * (MAX_JWKS_KEYS + 1)},
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_no_answer(garbage: Any) -> None:
    server = MemoryHttpClient(garbage)
    async with running(server) as keys:
        assert await finds(keys, EC) == "unavailable"
        server.answer = public(EC)
        await trio.sleep(2 * JWKS_MIN_INTERVAL)
        assert await finds(keys, EC) is True
        server.answer = garbage
        await trio.sleep(2 * JWKS_REFRESH_INTERVAL)
        assert await finds(keys, EC) is True


async def test_keys_that_cannot_be_used_harm_no_others() -> None:
    odd = [None, 5, {}, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA", "n": 5, "e": []}]
    server = MemoryHttpClient({"keys": [*odd, *public(EC)["keys"]]})
    async with running(server) as keys:
        assert await finds(keys, EC) is True


async def test_a_token_without_a_key_id_is_checked_where_there_is_no_choice() -> None:
    twin = {**EC.as_dict(private=False), "kid": "twin"}
    server = MemoryHttpClient(public(EC, RSA, ED))
    async with running(server) as keys:
        for algorithm in ("ES256", "RS256", "EdDSA"):
            assert await keys.find(algorithm, None) is not None
        server.answer = {"keys": [twin, *public(EC)["keys"]]}
        await trio.sleep(JWKS_REFRESH_INTERVAL + 1)
        assert await keys.find("ES256", None) is None
        assert await keys.find("ES256", "twin") is not None


async def test_a_task_that_fails_leaves_no_client_waiting() -> None:
    server = MemoryHttpClient(lambda _form: 1 / 0, delay=1)
    keys = KeySet(server, URL)
    outcomes: list[bool | str] = []

    async def find() -> None:
        outcomes.append(await finds(keys, EC))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ZeroDivisionError):
            await keys.run()
        # The supervisor starts it again.
        server.answer = public(EC)
        await trio.sleep(JWKS_MIN_INTERVAL)
        await nursery.start(keys.run)
        assert await finds(keys, EC) is True
        nursery.cancel_scope.cancel()
    assert outcomes == ["unavailable"]
