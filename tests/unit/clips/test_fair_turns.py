"""Nobody has a second turn while others wait for their first."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from attrs import define, field

from relay.clips.fair_turns import MAX_TURNS_KNOWN, FairTurns, NoTurn

pytestmark = pytest.mark.mock_clock

TIMEOUT, WORK = 5.0, 1.0


@define(eq=False)
class Users:
    """Users that ask for turns, and what they got."""

    turns: FairTurns
    order: list[str] = field(factory=list)
    refused: list[str] = field(factory=list)

    async def ask(self, user: str, seconds: float = WORK) -> None:
        try:
            async with self.turns.turn(user):
                self.order.append(user)
                await trio.sleep(seconds)
        except NoTurn:
            self.refused.append(user)

    async def insist(self, user: str) -> None:
        """Ask again and again."""
        while True:
            await self.ask(user)
            await trio.sleep(0.01)


@pytest.fixture
def users() -> Users:
    return Users(FairTurns(4, TIMEOUT))


async def test_turns_are_one_at_a_time_in_the_order_of_first_comers(users: Users) -> None:
    async with trio.open_nursery() as nursery:
        for user in "abcd":
            nursery.start_soon(users.ask, user)
            await trio.testing.wait_all_tasks_blocked()
    assert (users.order, users.refused) == (list("abcd"), [])
    assert trio.current_time() == pytest.approx(4 * WORK)


async def test_nobody_waits_twice(users: Users) -> None:
    async with trio.open_nursery() as nursery:
        for user in "aabb":
            nursery.start_soon(users.ask, user)
    assert (sorted(users.order), sorted(users.refused)) == (["a", "b"], ["a", "b"])


async def test_many_that_insist_do_not_keep_out_one_that_comes_now_and_then(users: Users) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(users.insist, f"greedy-{number}")
        await trio.sleep(30)
        for _ in range(5):
            before = len(users.order)
            await users.ask("ann")
            assert users.order[before : before + 2].count("ann") == 1
            await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert "ann" not in users.refused
    shares = Counter(users.order)
    assert min(shares[f"greedy-{number}"] for number in range(8)) >= 5


async def test_one_that_waits_too_long_gives_up_and_the_next_one_is_not_held_up(
    users: Users,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(users.ask, "a", 2 * TIMEOUT)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(users.ask, "b")
        await trio.sleep(TIMEOUT + 1)
        nursery.start_soon(users.ask, "c")
    assert (users.order, users.refused) == (["a", "c"], ["b"])


@pytest.mark.parametrize("cancelled", ["at work", "waiting", "called"])
async def test_one_that_leaves_passes_the_turn_on(users: Users, cancelled: str) -> None:
    leaves = trio.CancelScope()

    async def ask_and_leave() -> None:
        with leaves:
            await users.ask("b")

    async with trio.open_nursery() as nursery:
        if cancelled != "at work":
            nursery.start_soon(users.ask, "a")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask_and_leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(users.ask, "c")
        await trio.testing.wait_all_tasks_blocked()
        if cancelled == "called":
            await trio.sleep(WORK)  # now it has its turn, and has not run yet
        leaves.cancel()
    assert users.order[-1] == "c"
    assert users.refused == []
    async with users.turns.turn("d"):
        pass


async def test_what_is_known_of_users_has_an_end() -> None:
    turns = FairTurns(4, TIMEOUT)
    for number in range(MAX_TURNS_KNOWN + 10):
        async with turns.turn(f"user-{number}"):
            pass
    assert len(turns._last_turns) == MAX_TURNS_KNOWN
