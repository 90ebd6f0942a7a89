from __future__ import annotations

import threading
import tracemalloc

import pytest
import trio

from relay.errors import ConfigError
from relay.guard.client_address import ClientAddress
from relay.guard.failed_auths import KNOWN_GOOD_SECONDS, FailedAuths
from relay.guard.rates import ExpiringKeys, RateLimit, RateLimiter
from relay.guard.throttle import (
    BURST_SECONDS,
    EXCESS_RESET_INTERVAL,
    MAX_EXCESS_ERRORS,
    DebtBucket,
    Throttle,
    ThrottleRates,
)
from relay.metrics import Limit
from relay.settings.loading import load
from relay.transport.framing.frame_parser import Message

pytestmark = pytest.mark.mock_clock

HERE, THERE = ClientAddress.parse("192.0.2.1"), ClientAddress.parse("192.0.2.2")


async def test_what_is_over_the_rate_waits_for_the_next_window() -> None:
    rate = RateLimiter("2/minute")
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
    rate = RateLimiter("1/second")
    for _ in range(100):
        rate.hit("a")
    await trio.sleep(1)
    assert rate.hit("a") is None


async def test_the_table_is_bounded_and_forgets_the_least_recently_used_keys() -> None:
    rate = RateLimiter("1/hour", max_keys=100)
    rate.hit("first")
    for number in range(99):
        rate.hit(f"{number}")
    assert rate.hit("first") is not None  # and so it was seen again
    for number in range(5000):
        rate.hit(f"new {number}")
        if number % 50 == 0:
            assert rate.hit("first") is not None
    assert len(rate) == 100
    assert rate.hit("0") is None


async def test_keys_that_have_expired_make_room_before_others_do() -> None:
    rate = RateLimiter("1/minute", max_keys=3)
    rate.hit("live")
    await trio.sleep(30)
    assert rate.hit("live") is not None
    for key in "ab":
        rate.hit(key)
    await trio.sleep(30)
    rate.hit("c")
    assert len(rate) == 3
    assert rate.is_full("a")


async def test_one_key_that_hits_without_end_takes_no_more_memory() -> None:
    rate = RateLimiter("10/hour")

    def memory_after(hits: int) -> int:
        for _ in range(hits):
            rate.hit("flood")
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert memory_after(20_000) < memory_after(1000) + 10_000
    finally:
        tracemalloc.stop()
    assert len(rate) == 1


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [
        ("1/second", 1, 1),
        ("240/second", 240, 1),
        ("100/minute", 100, 60),
        ("999999999999/hour", 999_999_999_999, 3600),
    ],
)
async def test_a_rate_is_spelled_as_in_the_settings(text: str, count: int, seconds: int) -> None:
    assert RateLimit.parse(text) == RateLimit(count, seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "10", "/minute", "0/minute", "-1/minute", "1.5/minute", "10/day", "10/minutes"),
        *("10 per minute", "10 / minute", "5/10 seconds", "10/minute\n", "10/minute;20/hour"),
        *("1000000000000/hour", "\u0663/minute"),
    ],
)
async def test_no_other_spelling_is_a_rate(text: str) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        RateLimit.parse(text)


@pytest.mark.parametrize(
    "text", ["1/second", "100/minute", "10 per minute", "5/10 seconds", "1/day"]
)
async def test_the_settings_accept_what_can_be_read_and_nothing_else(text: str) -> None:
    try:
        RateLimit.parse(text)
    except ValueError:
        with pytest.raises(ConfigError, match="such as 100/minute"):
            load({"alert_rate": text}, environment={})
    else:
        assert load({"alert_rate": text}, environment={}).settings.alert_rate == text


async def test_no_thread_is_started() -> None:
    before = threading.active_count()
    RateLimiter("1/second").hit("a")
    assert threading.active_count() == before


async def test_a_key_expires_some_time_after_it_was_last_added() -> None:
    keys = ExpiringKeys(10)
    assert keys.remaining("a") is None
    keys.add("a")
    await trio.sleep(6)
    keys.add("a")
    await trio.sleep(6)
    assert keys.remaining("a") == pytest.approx(4)
    await trio.sleep(4)
    assert keys.remaining("a") is None


# -- failed auths


def failed_auths() -> FailedAuths:
    return FailedAuths(RateLimiter("10/minute"), RateLimiter("3/minute"), ban_time=100)


def fail(made: FailedAuths, number: int, address: ClientAddress = HERE) -> None:
    for each in range(number):
        made.failed(address, f"guess {each} {trio.current_time()}")


async def test_an_address_that_fails_too_often_is_banned_for_a_while() -> None:
    made = failed_auths()
    fail(made, 9)
    assert made.wait(HERE, "a new token") is None
    fail(made, 1)
    assert made.wait(HERE, "a new token") == pytest.approx(100)
    assert made.wait(THERE, "a new token") is None
    await trio.sleep(100)
    assert made.wait(HERE, "a new token") is None


async def test_failures_that_are_far_apart_cause_no_ban() -> None:
    made = failed_auths()
    for _ in range(50):
        fail(made, 1)
        await trio.sleep(7)
    assert made.wait(HERE, "a new token") is None


async def test_a_token_that_was_good_comes_in_from_a_banned_address_and_ends_the_ban() -> None:
    made = failed_auths()
    made.succeeded(THERE, "good")
    fail(made, 10)
    assert made.wait(HERE, "good") is None
    assert made.wait(HERE, "a new token") is not None
    made.succeeded(HERE, "good")
    assert made.wait(HERE, "a new token") is None


async def test_a_success_clears_the_failures_of_its_address() -> None:
    made = failed_auths()
    for _ in range(5):
        fail(made, 9)
        made.succeeded(HERE, "good")
    assert made.wait(HERE, "a new token") is None


async def test_a_token_is_banned_wherever_it_comes_from_also_one_that_was_good() -> None:
    made = failed_auths()
    made.succeeded(HERE, "expired")
    for number in range(3):
        assert made.wait(HERE, "expired") is None
        made.failed(ClientAddress.parse(f"192.0.2.{number}"), "expired")
    assert made.wait(THERE, "expired") == pytest.approx(100)
    assert made.wait(THERE, "another") is None


async def test_a_token_that_is_no_longer_good_has_no_privilege() -> None:
    made = failed_auths()
    made.succeeded(HERE, "expired")
    made.failed(HERE, "expired")
    fail(made, 9)
    assert made.wait(HERE, "expired") is not None


async def test_a_token_does_not_stay_known_as_good_forever() -> None:
    made = failed_auths()
    made.succeeded(HERE, "good")
    await trio.sleep(KNOWN_GOOD_SECONDS)
    fail(made, 10)
    assert made.wait(HERE, "good") is not None


async def test_all_spellings_of_a_token_are_one() -> None:
    made = failed_auths()
    for bits in range(256):
        spelling = "".join(
            f"%{ord(letter):02x}" if bits >> place & 1 else letter
            for place, letter in enumerate("a+b/c.d=")
        )
        made.succeeded(HERE, spelling)
    assert len(made.verdicts.known_good) == 1
    for spelling in ("a+b/c.d=", "a+b/c.d%3D", "a%2bb/c.d="):
        made.failed(HERE, spelling)
    assert made.wait(THERE, "a+b/c.d=") == pytest.approx(100)


@pytest.mark.parametrize("token", ["%", "%zz", "%ff", "\ud800%41", "%ed%a0%80", "\xe9%"])
async def test_whatever_a_token_is_it_can_be_remembered(token: str) -> None:
    made = failed_auths()
    made.succeeded(HERE, token)
    made.failed(HERE, token)
    assert made.wait(HERE, token) is None


async def test_no_token_is_in_what_is_kept() -> None:
    made = failed_auths()
    fail(made, 3)
    made.succeeded(HERE, "a-secret-token")
    kept = repr(made) + "".join(
        repr(table)
        for table in (
            made.by_token._windows,
            made.verdicts.banned._expiries,
            made.verdicts.known_good._expiries,
        )
    )
    assert "a-secret" not in kept
    assert "guess" not in kept


async def test_a_flood_of_addresses_and_tokens_leaves_bounded_tables() -> None:
    made = failed_auths()
    for number in range(40_000):
        address = ClientAddress.parse(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        made.failed(address, f"guess {number}")
    assert len(made.by_address) == len(made.by_token) == 16_384


# -- what one connection sends


async def test_a_bucket_holds_its_capacity_and_fills_at_its_rate() -> None:
    bucket = DebtBucket(10, 50)
    now = trio.current_time()
    assert [bucket.take(25, now) for _ in range(3)] == [True, True, False]
    assert not bucket.take(1, now)
    assert bucket.take(1, now + 0.1)
    assert bucket.take(50, now + 100)
    assert not bucket.take(1, now + 100)


async def test_a_bucket_that_owes_waits_until_it_owes_no_more() -> None:
    bucket = DebtBucket(10, 50)
    now = trio.current_time()
    assert bucket.take(150, now)
    assert not bucket.take(1, now)
    assert bucket.wait() == pytest.approx(10)
    assert not bucket.take(1, now + 9.9)
    assert bucket.take(1, now + 10.1)


def throttle() -> Throttle:
    return Throttle(ThrottleRates("100/second", "10/second", "1000/second"))


async def test_each_kind_has_its_limit() -> None:
    now = trio.current_time()
    small, big = Message(1, b""), Message(1, bytes(5001))
    one, another, third = throttle(), throttle(), throttle()
    for _ in range(int(100 * BURST_SECONDS)):
        assert one.take([small], now) is None
    excess = one.take([small], now)
    assert excess is not None
    assert excess.limit is Limit.MESSAGES
    assert another.take([big], now) is None
    excess = another.take([small], now)
    assert excess is not None
    assert (excess.limit, excess.retry_after) == (Limit.BYTES, 1)
    assert third.take_frames(int(10 * BURST_SECONDS), now) is None
    excess = third.take_frames(1, now)
    assert excess is not None
    assert excess.limit is Limit.FRAMES


async def test_excess_is_told_once_a_second_and_goes_on_after_some_of_that() -> None:
    made, now = throttle(), trio.current_time()
    made.take_frames(10_000, now)
    told = 0
    for tenth in range(10 * MAX_EXCESS_ERRORS + 1):
        excess = made.take_frames(1, now + tenth / 10)
        assert excess is not None
        told += excess.tell
        assert excess.persists == (told > MAX_EXCESS_ERRORS)
    assert told == MAX_EXCESS_ERRORS + 1


async def test_excess_is_forgiven_after_a_while() -> None:
    made, now = throttle(), trio.current_time()
    for _ in range(3 * MAX_EXCESS_ERRORS):
        now += EXCESS_RESET_INTERVAL + 0.1
        made.take_frames(10_000, now)
        excess = made.take_frames(1, now)
        assert excess is not None
        assert not excess.persists
        now += 1000
