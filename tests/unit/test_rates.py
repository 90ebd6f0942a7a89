from __future__ import annotations

import threading

import pytest
import trio

from relay.guard.address import ClientAddress
from relay.guard.attempts import KNOWN_GOOD, Attempts
from relay.guard.rates import BoundedStorage, Marks, Rate
from relay.guard.throttle import BURST, CALM, PATIENCE, Allowance, Bucket, Throttle
from relay.metrics import Limit
from relay.transport.splice import Message

pytestmark = pytest.mark.mock_clock

HERE, THERE = ClientAddress.parse("192.0.2.1"), ClientAddress.parse("192.0.2.2")


async def test_what_is_over_the_rate_waits_for_the_next_window() -> None:
    rate = Rate("2/minute")
    assert rate.hit("a") is None
    await trio.sleep(10)
    assert rate.hit("a") is None
    assert rate.is_full("a")
    assert rate.hit("a") == pytest.approx(50)
    assert rate.hit("b") is None
    await trio.sleep(50)
    assert not rate.is_full("a")
    assert rate.hit("a") is None


async def test_what_is_over_the_rate_does_not_lengthen_the_window() -> None:
    rate = Rate("1/second")
    for _ in range(100):
        rate.hit("a")
    await trio.sleep(1)
    assert rate.hit("a") is None


async def test_the_store_is_bounded_and_forgets_those_not_seen_for_longest() -> None:
    rate = Rate("1/hour", BoundedStorage(100))
    rate.hit("first")
    for number in range(99):
        rate.hit(f"{number}")
    assert rate.hit("first") is not None  # and so it was seen again
    for number in range(5000):
        rate.hit(f"new {number}")
        if number % 50 == 0:
            assert rate.hit("first") is not None
    assert len(rate.store) == 100
    assert rate.hit("0") is None


async def test_no_thread_is_started() -> None:
    before = threading.active_count()
    Rate("1/second").hit("a")
    assert threading.active_count() == before


async def test_a_mark_lasts_its_time_from_the_last_setting() -> None:
    marks = Marks(10)
    assert marks.left("a") is None
    marks.set("a")
    await trio.sleep(6)
    marks.set("a")
    await trio.sleep(6)
    assert marks.left("a") == pytest.approx(4)
    await trio.sleep(4)
    assert marks.left("a") is None


# -- attempts


def attempts() -> Attempts:
    return Attempts(Rate("10/minute"), Rate("3/minute"), ban_time=100)


def fail(made: Attempts, number: int, address: ClientAddress = HERE) -> None:
    for each in range(number):
        made.failed(address, f"guess {each} {trio.current_time()}")


async def test_an_address_that_fails_too_often_is_banned_for_a_while() -> None:
    made = attempts()
    fail(made, 9)
    assert made.wait(HERE, "a new token") is None
    fail(made, 1)
    assert made.wait(HERE, "a new token") == pytest.approx(100)
    assert made.wait(THERE, "a new token") is None
    await trio.sleep(100)
    assert made.wait(HERE, "a new token") is None


async def test_failures_that_are_far_apart_ban_nobody() -> None:
    made = attempts()
    for _ in range(50):
        fail(made, 1)
        await trio.sleep(7)
    assert made.wait(HERE, "a new token") is None


async def test_a_token_that_was_good_comes_in_from_a_banned_address_and_ends_the_ban() -> None:
    made = attempts()
    made.succeeded(THERE, "good")
    fail(made, 10)
    assert made.wait(HERE, "good") is None
    assert made.wait(HERE, "a new token") is not None
    made.succeeded(HERE, "good")
    assert made.wait(HERE, "a new token") is None


async def test_whoever_comes_in_clears_the_failures_of_the_address() -> None:
    made = attempts()
    for _ in range(5):
        fail(made, 9)
        made.succeeded(HERE, "good")
    assert made.wait(HERE, "a new token") is None


async def test_a_token_is_banned_wherever_it_comes_from_also_one_that_was_good() -> None:
    made = attempts()
    made.succeeded(HERE, "expired")
    for number in range(3):
        assert made.wait(HERE, "expired") is None
        made.failed(ClientAddress.parse(f"192.0.2.{number}"), "expired")
    assert made.wait(THERE, "expired") == pytest.approx(100)
    assert made.wait(THERE, "another") is None


async def test_a_token_that_is_no_longer_good_has_no_privilege() -> None:
    made = attempts()
    made.succeeded(HERE, "expired")
    made.failed(HERE, "expired")
    fail(made, 9)
    assert made.wait(HERE, "expired") is not None


async def test_being_known_as_good_ends_some_day() -> None:
    made = attempts()
    made.succeeded(HERE, "good")
    await trio.sleep(KNOWN_GOOD)
    fail(made, 10)
    assert made.wait(HERE, "good") is not None


async def test_all_spellings_of_a_token_are_one() -> None:
    made = attempts()
    for bits in range(256):
        spelling = "".join(
            f"%{ord(letter):02x}" if bits >> place & 1 else letter
            for place, letter in enumerate("a+b/c.d=")
        )
        made.succeeded(HERE, spelling)
    assert len(made.known_good.store) == 1
    for spelling in ("a+b/c.d=", "a+b/c.d%3D", "a%2bb/c.d="):
        made.failed(HERE, spelling)
    assert made.wait(THERE, "a+b/c.d=") == pytest.approx(100)


@pytest.mark.parametrize("token", ["%", "%zz", "%ff", "\ud800%41", "%ed%a0%80", "\xe9%"])
async def test_whatever_a_token_is_it_can_be_remembered(token: str) -> None:
    made = attempts()
    made.succeeded(HERE, token)
    made.failed(HERE, token)
    assert made.wait(HERE, token) is None


async def test_no_token_is_in_what_is_kept() -> None:
    made = attempts()
    fail(made, 3)
    made.succeeded(HERE, "a-secret-token")
    kept = repr(made) + "".join(
        repr(store._counts)
        for store in (made.by_token.store, made.banned.store, made.known_good.store)
    )
    assert "a-secret" not in kept
    assert "guess" not in kept


async def test_a_flood_of_addresses_and_tokens_leaves_bounded_tables() -> None:
    made = attempts()
    for number in range(40_000):
        address = ClientAddress.parse(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        made.failed(address, f"guess {number}")
    assert len(made.by_address.store) == len(made.by_token.store) == 16_384


# -- what one connection sends


async def test_a_bucket_holds_its_capacity_and_fills_at_its_rate() -> None:
    bucket = Bucket(10, 50)
    now = trio.current_time()
    assert [bucket.take(25, now) for _ in range(3)] == [True, True, False]
    assert not bucket.take(1, now)
    assert bucket.take(1, now + 0.1)
    assert bucket.take(50, now + 100)
    assert not bucket.take(1, now + 100)


async def test_a_bucket_that_owes_waits_until_it_owes_no_more() -> None:
    bucket = Bucket(10, 50)
    now = trio.current_time()
    assert bucket.take(150, now)
    assert not bucket.take(1, now)
    assert bucket.wait() == pytest.approx(10)
    assert not bucket.take(1, now + 9.9)
    assert bucket.take(1, now + 10.1)


def throttle() -> Throttle:
    return Throttle(Allowance("100/second", "10/second", "1000/second"))


async def test_each_kind_has_its_limit() -> None:
    now = trio.current_time()
    small, big = Message(1, b""), Message(1, bytes(5001))
    one, another, third = throttle(), throttle(), throttle()
    for _ in range(int(100 * BURST)):
        assert one.take([small], now) is None
    excess = one.take([small], now)
    assert excess is not None
    assert excess.limit is Limit.MESSAGES
    assert another.take([big], now) is None
    excess = another.take([small], now)
    assert excess is not None
    assert (excess.limit, excess.retry_after) == (Limit.BYTES, 1)
    assert third.take_frames(int(10 * BURST), now) is None
    excess = third.take_frames(1, now)
    assert excess is not None
    assert excess.limit is Limit.FRAMES


async def test_excess_is_told_once_a_second_and_goes_on_after_some_of_that() -> None:
    made, now = throttle(), trio.current_time()
    made.take_frames(10_000, now)
    told = 0
    for tenth in range(10 * PATIENCE + 1):
        excess = made.take_frames(1, now + tenth / 10)
        assert excess is not None
        told += excess.tell
        assert excess.goes_on == (told > PATIENCE)
    assert told == PATIENCE + 1


async def test_excess_is_forgiven_after_a_while() -> None:
    made, now = throttle(), trio.current_time()
    for _ in range(3 * PATIENCE):
        now += CALM + 0.1
        made.take_frames(10_000, now)
        excess = made.take_frames(1, now)
        assert excess is not None
        assert not excess.goes_on
        now += 1000
