"""An issuer's keys: seldom fetched, always fresh enough, and there while the issuer is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from joserfc.jwk import Key

from relay.auth.jwks import EVERY, INTERVAL, KEPT, MOST_KEYS, PATIENCE, KeySet
from relay.errors import StoreUnavailable
from tests.unit.other_server import URL, OtherServer
from tests.unit.tokens import EC, ED, RSA, public

pytestmark = pytest.mark.mock_clock


@asynccontextmanager
async def running(server: OtherServer) -> AsyncIterator[KeySet]:
    keys = KeySet(cast("Any", server), URL)
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.run)
        yield keys
        nursery.cancel_scope.cancel()


async def finds(keys: KeySet, key: Key = EC, kid: str | None = None) -> bool | str:
    """Whether the key is found, or that this cannot be told."""
    algorithm = {"EC": "ES256", "RSA": "RS256", "OKP": "EdDSA"}[key.key_type]
    try:
        return await keys.find(algorithm, key.kid if kid is None else kid) is not None
    except StoreUnavailable:
        return "unavailable"


async def test_keys_are_fetched_once_for_many_tokens() -> None:
    server = OtherServer(public(EC, RSA), delay=1)
    async with running(server) as keys, trio.open_nursery() as nursery:
        found: list[bool | str] = []

        async def find(key: Key) -> None:
            found.append(await finds(keys, key))

        for _ in range(50):
            nursery.start_soon(find, EC)
            nursery.start_soon(find, RSA)
        await trio.sleep(EVERY / 2)
        assert found == [True] * 100
        # The first began before the tokens came; what they waited for is the second.
        assert len(server.asked) <= 2


async def test_a_new_key_is_found_when_its_first_token_comes() -> None:
    server = OtherServer(public(EC))
    async with running(server) as keys:
        assert await finds(keys, EC)
        await trio.sleep(60)
        server.answer = public(RSA)
        started = trio.current_time()
        assert await finds(keys, RSA) is True
        assert trio.current_time() == started
        assert await finds(keys, EC) is False


async def test_made_up_key_ids_cause_no_flood_and_are_all_told_that_they_are_wrong() -> None:
    server = OtherServer(public(EC))
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
        assert len(server.asked) - before <= seconds / INTERVAL + 1


async def test_known_keys_do_not_wait_behind_made_up_ones() -> None:
    server = OtherServer(public(EC))
    async with running(server) as keys, trio.open_nursery() as nursery:
        assert await finds(keys, EC)
        nursery.start_soon(finds, keys, EC, "made-up")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        assert await finds(keys, EC)
        assert trio.current_time() == started


async def test_who_asks_and_goes_away_delays_no_look() -> None:
    server = OtherServer(public(EC), delay=1)
    async with running(server) as keys:
        assert await finds(keys, EC)
        await trio.sleep(INTERVAL)
        server.answer = public(RSA)
        with trio.move_on_after(0.5):
            await finds(keys, EC, "made-up")
        started = trio.current_time()
        assert await finds(keys, RSA) is True
        assert trio.current_time() - started <= INTERVAL + 1


async def test_a_key_that_is_withdrawn_serves_no_longer_than_to_the_next_look() -> None:
    server = OtherServer(public(EC, RSA))
    async with running(server) as keys:
        assert await finds(keys, EC)
        server.answer = public(RSA)
        await trio.sleep(EVERY + 1)
        assert await finds(keys, EC) is False


async def test_old_keys_serve_while_the_issuer_is_away_but_not_for_ever() -> None:
    server = OtherServer(public(EC))
    async with running(server) as keys:
        assert await finds(keys, EC)
        server.away = True
        await trio.sleep(KEPT - EVERY)
        assert await finds(keys, EC) is True
        assert await finds(keys, RSA) == "unavailable"
        await trio.sleep(EVERY + 1)
        assert await finds(keys, EC) == "unavailable"
        server.away = False
        await trio.sleep(2 * INTERVAL)
        assert await finds(keys, EC) is True


async def test_an_issuer_that_is_away_from_the_start_makes_no_token_wrong() -> None:
    server = OtherServer(public(EC), away=True)
    async with running(server) as keys:
        assert await finds(keys, EC) == "unavailable"
        server.away = False
        await trio.sleep(2 * INTERVAL)
        assert await finds(keys, EC) is True


async def test_an_issuer_that_is_away_is_asked_no_more_often_than_one_that_is_there() -> None:
    server = OtherServer(away=True)
    async with running(server) as keys:
        for _ in range(600):
            assert await finds(keys, EC) == "unavailable"
            await trio.sleep(0.1)
        assert len(server.asked) <= 60 / INTERVAL + 1


async def test_a_slow_issuer_is_given_up() -> None:
    server = OtherServer(public(EC), delay=3600)
    async with running(server) as keys:
        started = trio.current_time()
        assert await finds(keys, EC) == "unavailable"
        assert trio.current_time() - started <= 2 * PATIENCE + INTERVAL


GARBAGE = [
    b"",
    b"\xff",
    b"<html>",
    b"[" * 100_000,
    b"null",
    b"{}",
    b'{"keys": 5}',
    b'{"keys": {}}',
    {"keys": [{}] * (MOST_KEYS + 1)},
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_no_answer(garbage: Any) -> None:
    server = OtherServer(garbage)
    async with running(server) as keys:
        assert await finds(keys, EC) == "unavailable"
        server.answer = public(EC)
        await trio.sleep(2 * INTERVAL)
        assert await finds(keys, EC) is True
        server.answer = garbage
        await trio.sleep(2 * EVERY)
        assert await finds(keys, EC) is True


async def test_keys_that_cannot_be_used_harm_no_others() -> None:
    odd = [None, 5, {}, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA", "n": 5, "e": []}]
    server = OtherServer({"keys": [*odd, *public(EC)["keys"]]})
    async with running(server) as keys:
        assert await finds(keys, EC) is True


async def test_a_token_without_a_key_id_is_checked_where_there_is_no_choice() -> None:
    twin = {**EC.as_dict(private=False), "kid": "twin"}
    server = OtherServer(public(EC, RSA, ED))
    async with running(server) as keys:
        for algorithm in ("ES256", "RS256", "EdDSA"):
            assert await keys.find(algorithm, None) is not None
        server.answer = {"keys": [twin, *public(EC)["keys"]]}
        await trio.sleep(EVERY + 1)
        assert await keys.find("ES256", None) is None
        assert await keys.find("ES256", "twin") is not None


async def test_a_service_that_breaks_leaves_nobody_waiting() -> None:
    server = OtherServer(lambda _form: 1 / 0, delay=1)
    keys = KeySet(cast("Any", server), URL)
    outcomes: list[bool | str] = []

    async def find() -> None:
        outcomes.append(await finds(keys, EC))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ZeroDivisionError):
            await keys.run()
        # Supervised, it runs again.
        server.answer = public(EC)
        await trio.sleep(INTERVAL)
        await nursery.start(keys.run)
        assert await finds(keys, EC) is True
        nursery.cancel_scope.cancel()
    assert outcomes == ["unavailable"]
