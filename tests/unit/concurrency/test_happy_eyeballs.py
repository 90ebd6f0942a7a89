"""Several addresses, of which some do not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from attrs import define, field

from relay.concurrency.happy_eyeballs import ATTEMPT_DELAY, alternate_families, connect_first

pytestmark = pytest.mark.mock_clock


@define(eq=False)
class Connection:
    """Notes whether it is open."""

    name: str
    open: bool = True

    async def aclose(self) -> None:
        self.open = False
        await trio.lowlevel.checkpoint()


@define(eq=False)
class Addresses:
    """Addresses that answer after a while, or fail after a while."""

    begun: list[tuple[str, float]] = field(factory=list)
    made: list[Connection] = field(factory=list)

    def attempt(
        self, name: str, *, after: float, fails: bool = False
    ) -> Callable[[], Awaitable[Connection | None]]:
        async def connect() -> Connection | None:
            self.begun.append((name, trio.current_time()))
            await trio.sleep(after)
            if fails:
                return None
            self.made.append(Connection(name))
            return self.made[-1]

        return connect

    @property
    def open(self) -> list[str]:
        return [each.name for each in self.made if each.open]


@pytest.fixture
def addresses() -> Addresses:
    return Addresses()


async def test_an_address_without_an_answer_delays_the_next_for_a_moment(
    addresses: Addresses,
) -> None:
    began = trio.current_time()
    attempts = [
        addresses.attempt("dead", after=float("inf")),
        addresses.attempt("slow", after=5),
        addresses.attempt("good", after=0.01),
        addresses.attempt("never asked", after=0),
    ]
    found = await connect_first(attempts)
    assert found
    assert found.name == "good"
    assert [name for name, _ in addresses.begun] == ["dead", "slow", "good"]
    assert trio.current_time() - began == pytest.approx(2 * ATTEMPT_DELAY + 0.01)


async def test_after_a_failure_the_next_begins_at_once(addresses: Addresses) -> None:
    began = trio.current_time()
    attempts = [
        addresses.attempt("refuses", after=0.01, fails=True),
        addresses.attempt("good", after=0.01),
    ]
    found = await connect_first(attempts)
    assert found
    assert found.name == "good"
    assert trio.current_time() - began == pytest.approx(0.02)


async def test_an_earlier_address_may_still_win(addresses: Addresses) -> None:
    attempts = [addresses.attempt("slow", after=0.3), addresses.attempt("dead", after=1e9)]
    found = await connect_first(attempts)
    assert found
    assert found.name == "slow"


async def test_all_may_fail(addresses: Addresses) -> None:
    attempts = [addresses.attempt(name, after=1, fails=True) for name in "abc"]
    assert await connect_first(attempts[:0]) is None
    assert await connect_first(attempts) is None
    assert len(addresses.begun) == 3


async def test_of_two_that_answer_at_once_one_is_closed(addresses: Addresses) -> None:
    attempts = [
        addresses.attempt("first", after=ATTEMPT_DELAY + 1),
        addresses.attempt("second", after=1),
    ]
    found = await connect_first(attempts)
    assert found
    assert addresses.open == [found.name]


async def test_cancellation_leaves_no_connection(addresses: Addresses) -> None:
    with trio.move_on_after(1) as waiting:
        await connect_first([addresses.attempt("dead", after=9) for _ in range(3)])
    assert waiting.cancelled_caught
    assert not addresses.open


async def test_cancellation_at_the_moment_of_success_leaves_no_connection(
    addresses: Addresses,
) -> None:
    good = addresses.attempt("good", after=0)

    async def connect() -> Connection | None:
        connection = await good()
        waiting.cancel()
        return connection

    with trio.CancelScope() as waiting:
        await connect_first([connect])
    assert waiting.cancelled_caught
    assert len(addresses.made) == 1
    assert not addresses.open


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", ""), ("4", "4"), ("6664", "6466"), ("4466", "4646"), ("46", "46"), ("666", "666")],
)
async def test_the_second_address_is_of_the_other_family(given: str, expected: str) -> None:
    assert "".join(alternate_families(given, lambda family: family)) == expected
