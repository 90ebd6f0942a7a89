"""The cache of introspection, and its limit of concurrent requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from relay.auth.methods.introspection import Introspection
from relay.auth.token_cache import MAX_REQUESTS, TOKEN_REQUEST_TIMEOUT, TokenCache
from relay.model.access.identity import User
from tests.unit.auth.test_introspection import active, introspection, verify
from tests.unit.memory import user
from tests.unit.memory.http_client import MemoryHttpClient

pytestmark = pytest.mark.mock_clock


@pytest.mark.parametrize("answer", [active(), {"active": False}])
async def test_an_answer_is_cached_for_some_seconds(answer: Any) -> None:
    server = MemoryHttpClient(answer)
    method = introspection(server)
    first = await verify(method)
    assert await verify(method) == first
    await trio.sleep(4.9)
    assert await verify(method) == first
    assert len(server.asked) == 1
    await trio.sleep(0.2)
    await verify(method)
    assert len(server.asked) == 2


async def test_a_failed_request_is_not_cached() -> None:
    server = MemoryHttpClient(active(), away=True)
    method = introspection(server)
    assert await verify(method) == "unavailable"
    server.away = False
    assert isinstance(await verify(method), User)


async def test_the_cache_can_be_switched_off() -> None:
    server = MemoryHttpClient(active())
    method = introspection(server, seconds=0)
    for _ in range(3):
        await verify(method)
    assert len(server.asked) == 3


async def test_an_answer_is_not_cached_beyond_the_expiry_of_its_token() -> None:
    server = MemoryHttpClient(active(exp=time.time() + 2))
    method = introspection(server)
    assert isinstance(await verify(method), User)
    await trio.sleep(2.1)
    await verify(method)
    assert len(server.asked) == 2


@pytest.mark.parametrize("whose", [{"user_id": "ann"}, {"session_id": "s-1"}])
async def test_answers_are_dropped_on_revocation(whose: Any) -> None:
    sessions = {"ann": "s-1", "bob": "s-2"}
    server = MemoryHttpClient(lambda form: active(sub=form["token"], sid=sessions[form["token"]]))
    method = introspection(server)
    await verify(method, "ann")
    await verify(method, "bob")
    method.forget(**whose)
    await verify(method, "bob")
    assert len(server.asked) == 2
    server.answer = {"active": False}
    assert await verify(method, "ann") is None


@pytest.mark.parametrize("answer", [active(), {"active": False}])
async def test_all_answers_are_dropped_when_anything_may_have_changed(answer: Any) -> None:
    server = MemoryHttpClient(answer)
    method = introspection(server)
    await verify(method)
    method.forget()
    await verify(method)
    assert len(server.asked) == 2


@pytest.mark.parametrize("whose", [{"user_id": "ann"}, {}])
async def test_an_answer_awaited_during_a_revocation_is_not_cached(whose: Any) -> None:
    server = MemoryHttpClient(active(), delay=1)
    method = introspection(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verify, method)
        await trio.sleep(0.5)
        method.forget(**whose)
    server.answer = {"active": False}
    assert await verify(method) is None


async def test_invalid_tokens_evict_no_valid_ones() -> None:
    def answer(form: Mapping[str, str]) -> Any:
        return active() if form["token"] == "good" else {"active": False}

    server = MemoryHttpClient(answer)
    method = introspection(server, seconds=300)
    await verify(method, "good")
    for number in range(12_000):
        assert await verify(method, f"guess-{number}") is None
    await verify(method, "good")
    assert [form["token"] for form in server.asked].count("good") == 1


async def test_memory_is_bounded_and_keeps_what_is_used() -> None:
    cache = TokenCache(60, 3)
    for number in range(3):
        cache.put(bytes([number]), user("ann"))
    assert cache.get(b"\0")
    cache.put(b"\3", user("bob"))
    assert len(cache) == 3
    assert cache.get(b"\0")
    assert not cache.get(b"\1")


async def ask(method: Introspection, tokens: list[str]) -> list[User | str | None]:
    answers: list[User | str | None] = []

    async def one(token: str) -> None:
        answers.append(await verify(method, token))

    async with trio.open_nursery() as nursery:
        for token in tokens:
            nursery.start_soon(one, token)
    return answers


async def test_concurrent_requests_are_limited() -> None:
    server = MemoryHttpClient(active(), delay=1)
    answers = await ask(introspection(server), [str(number) for number in range(100)])
    assert all(isinstance(answer, User) for answer in answers)
    assert len(answers) == len(server.asked) == 100
    assert server.most_at_once == MAX_REQUESTS


async def test_many_clients_with_one_token_cause_a_few_requests() -> None:
    server = MemoryHttpClient(active(), delay=1)
    assert len(await ask(introspection(server), ["opaque"] * 500)) == 500
    assert len(server.asked) <= MAX_REQUESTS


async def test_a_slow_server_is_abandoned() -> None:
    server = MemoryHttpClient(active(), delay=3600)
    started = trio.current_time()
    assert await verify(introspection(server)) == "unavailable"
    assert trio.current_time() - started == TOKEN_REQUEST_TIMEOUT


async def test_a_client_that_leaves_makes_room_for_others() -> None:
    server = MemoryHttpClient(active(), delay=4)
    method = introspection(server)
    with trio.move_on_after(1):
        await ask(method, [f"gone-{number}" for number in range(100)])
    started = trio.current_time()
    assert isinstance(await verify(method), User)
    assert trio.current_time() - started == 4
