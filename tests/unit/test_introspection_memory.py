"""What is remembered of introspection, and how much is asked at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from relay.auth.introspection import AT_ONCE, PATIENCE, Introspection
from relay.auth.memory import Memory
from relay.model import User
from tests.unit.memory import user
from tests.unit.other_server import OtherServer
from tests.unit.test_introspection import active, verify, way

pytestmark = pytest.mark.mock_clock


@pytest.mark.parametrize("answer", [active(), {"active": False}])
async def test_an_answer_is_believed_for_seconds(answer: Any) -> None:
    server = OtherServer(answer)
    asking = way(server)
    first = await verify(asking)
    assert await verify(asking) == first
    await trio.sleep(4.9)
    assert await verify(asking) == first
    assert len(server.asked) == 1
    await trio.sleep(0.2)
    await verify(asking)
    assert len(server.asked) == 2


async def test_no_answer_is_not_remembered() -> None:
    server = OtherServer(active(), away=True)
    asking = way(server)
    assert await verify(asking) == "unavailable"
    server.away = False
    assert isinstance(await verify(asking), User)


async def test_it_can_be_switched_off() -> None:
    server = OtherServer(active())
    asking = way(server, seconds=0)
    for _ in range(3):
        await verify(asking)
    assert len(server.asked) == 3


async def test_an_answer_is_not_believed_beyond_the_token_s_expiry() -> None:
    server = OtherServer(active(exp=time.time() + 2))
    asking = way(server)
    assert isinstance(await verify(asking), User)
    await trio.sleep(2.1)
    await verify(asking)
    assert len(server.asked) == 2


@pytest.mark.parametrize("whose", [{"user_id": "ann"}, {"session_id": "s-1"}])
async def test_it_is_forgotten_on_revocation(whose: Any) -> None:
    sessions = {"ann": "s-1", "bob": "s-2"}
    server = OtherServer(lambda form: active(sub=form["token"], sid=sessions[form["token"]]))
    asking = way(server)
    await verify(asking, "ann")
    await verify(asking, "bob")
    asking.forget(**whose)
    await verify(asking, "bob")
    assert len(server.asked) == 2
    server.answer = {"active": False}
    assert await verify(asking, "ann") is None


@pytest.mark.parametrize("answer", [active(), {"active": False}])
async def test_all_of_it_is_forgotten_when_anything_may_have_changed(answer: Any) -> None:
    server = OtherServer(answer)
    asking = way(server)
    await verify(asking)
    asking.forget()
    await verify(asking)
    assert len(server.asked) == 2


@pytest.mark.parametrize("whose", [{"user_id": "ann"}, {}])
async def test_an_answer_under_way_at_a_revocation_is_not_remembered(whose: Any) -> None:
    server = OtherServer(active(), delay=1)
    asking = way(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verify, asking)
        await trio.sleep(0.5)
        asking.forget(**whose)
    server.answer = {"active": False}
    assert await verify(asking) is None


async def test_wrong_tokens_push_out_nothing_that_is_known_of_good_ones() -> None:
    def answer(form: Mapping[str, str]) -> Any:
        return active() if form["token"] == "good" else {"active": False}

    server = OtherServer(answer)
    asking = way(server, seconds=300)
    await verify(asking, "good")
    for number in range(12_000):
        assert await verify(asking, f"guess-{number}") is None
    await verify(asking, "good")
    assert [form["token"] for form in server.asked].count("good") == 1


async def test_memory_is_bounded_and_keeps_what_is_used() -> None:
    memory = Memory(60, 3)
    for number in range(3):
        memory.keep(bytes([number]), user("ann"))
    assert memory.recall(b"\0")
    memory.keep(b"\3", user("bob"))
    assert len(memory) == 3
    assert memory.recall(b"\0")
    assert not memory.recall(b"\1")


async def ask(asking: Introspection, tokens: list[str]) -> list[User | str | None]:
    answers: list[User | str | None] = []

    async def one(token: str) -> None:
        answers.append(await verify(asking, token))

    async with trio.open_nursery() as nursery:
        for token in tokens:
            nursery.start_soon(one, token)
    return answers


async def test_no_more_than_some_are_asked_about_at_once() -> None:
    server = OtherServer(active(), delay=1)
    answers = await ask(way(server), [str(number) for number in range(100)])
    assert all(isinstance(answer, User) for answer in answers)
    assert len(answers) == len(server.asked) == 100
    assert server.most_at_once == AT_ONCE


async def test_the_same_token_from_many_is_asked_about_a_few_times() -> None:
    server = OtherServer(active(), delay=1)
    assert len(await ask(way(server), ["opaque"] * 500)) == 500
    assert len(server.asked) <= AT_ONCE


async def test_a_slow_server_is_given_up() -> None:
    server = OtherServer(active(), delay=3600)
    started = trio.current_time()
    assert await verify(way(server)) == "unavailable"
    assert trio.current_time() - started == PATIENCE


async def test_who_goes_away_leaves_room_for_others() -> None:
    server = OtherServer(active(), delay=4)
    asking = way(server)
    with trio.move_on_after(1):
        await ask(asking, [f"gone-{number}" for number in range(100)])
    started = trio.current_time()
    assert isinstance(await verify(asking), User)
    assert trio.current_time() - started == 4
