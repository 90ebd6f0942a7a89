"""What clients do again and again is counted."""

from __future__ import annotations

import pytest
from attrs import evolve

from relay.audit.repetitions import (
    MAX_REPETITIONS,
    MAX_SINGLE_EVENTS,
    MAX_SINGLE_REQUESTS,
    Repetitions,
)
from relay.model.audit_event import AuditEvent
from relay.protocol.endings import Ending

REFUSED = Ending.TOO_MANY_CONNECTIONS.label


def close(address: str = "192.0.2.1", **about: str) -> AuditEvent:
    return AuditEvent(what="close", outcome="forced", reason=REFUSED, address=address, **about)  # type: ignore[arg-type]


def test_the_first_of_a_kind_is_recorded_and_those_after_it_are_summed_up() -> None:
    repetitions = Repetitions()
    assert [repetitions.count(close()) for _ in range(4)] == [False, True, True, True]
    (summed,) = repetitions.take()
    assert summed.reason == f"{REFUSED}, 3 more"
    assert (summed.what, summed.outcome, summed.address) == ("close", "forced", "192.0.2.1")


def test_a_kind_is_forgotten_when_it_was_not_repeated_for_a_while() -> None:
    repetitions = Repetitions()
    repetitions.count(close())
    repetitions.count(close())
    assert len(repetitions.take()) == 1
    assert repetitions.count(close())
    assert len(repetitions.take()) == 1
    assert repetitions.take() == []
    assert not repetitions.count(close())


@pytest.mark.parametrize("about", [{"user_id": "ann"}, {"service": "sentry"}])
def test_the_first_events_about_somebody_are_recorded_and_those_after_them_summed_up(
    about: dict[str, str],
) -> None:
    repetitions = Repetitions()
    counted = [repetitions.count(close(**about)) for _ in range(MAX_SINGLE_EVENTS + 3)]
    assert counted == [False] * MAX_SINGLE_EVENTS + [True] * 3
    (summed,) = repetitions.take()
    assert (summed.reason, summed.user_id, summed.service) == (
        *(f"{REFUSED}, 3 more", about.get("user_id"), about.get("service")),
    )


@pytest.mark.parametrize("about", [{"user_id": "ann"}, {"service": "sentry"}])
def test_of_requests_over_http_few_are_recorded_by_themselves(about: dict[str, str]) -> None:
    repetitions = Repetitions()

    def request(user: dict[str, str], session_id: str) -> AuditEvent:
        event = AuditEvent(what="auth", outcome="succeeded", reason="HTTP", session_id=session_id)
        return evolve(event, user_id=user.get("user_id"), service=user.get("service"))

    counted = [repetitions.count(request(about, str(number))) for number in range(100)]
    assert counted == [False] * MAX_SINGLE_REQUESTS + [True] * (100 - MAX_SINGLE_REQUESTS)
    assert not repetitions.count(request({"user_id": "bob"}, "s"))
    (summed,) = repetitions.take()
    assert summed.reason == f"HTTP, {100 - MAX_SINGLE_REQUESTS} more"


def test_takeovers_repeat_each_other_though_each_names_a_connection() -> None:
    repetitions = Repetitions()
    for number in range(MAX_SINGLE_EVENTS + 5):
        reason = f"from connection {number}"
        repetitions.count(
            AuditEvent(what="takeover", outcome="succeeded", reason=reason, user_id="ann")
        )
    (summed,) = repetitions.take()
    assert summed.reason == "5 more"


def test_addresses_of_one_ipv6_network_are_one() -> None:
    repetitions = Repetitions()
    counted = [repetitions.count(close(f"2001:db8::{number:x}")) for number in range(4)]
    assert counted == [False, True, True, True]
    assert not repetitions.count(close("2001:db8:0:1::1"))
    (summed,) = repetitions.take()
    assert summed.address == "2001:db8::3"


def test_limited_attempts_to_authenticate_are_counted_by_address() -> None:
    repetitions = Repetitions()
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        repetitions.count(AuditEvent(what="auth", outcome="limited", address=address))
    (summed,) = repetitions.take()
    assert (summed.reason, summed.address) == ("1 more", "192.0.2.1")


def test_an_anonymous_event_of_another_kind_is_not_counted() -> None:
    repetitions = Repetitions()
    failed = AuditEvent(what="auth", outcome="failed", address="192.0.2.1")
    assert not any(repetitions.count(failed) for _ in range(MAX_SINGLE_EVENTS + 3))


@pytest.mark.parametrize("ending", [Ending.AUTH_TIMEOUT, Ending.PROTOCOL_ERROR, Ending.NOT_UTF8])
def test_every_ending_that_needs_no_token_is_counted(ending: Ending) -> None:
    repetitions = Repetitions()
    event = AuditEvent(what="close", outcome="forced", reason=ending.label, address="192.0.2.1")
    assert [repetitions.count(event) for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("ending", [Ending.AUTH_FAILED, Ending.INTERNAL_ERROR])
def test_an_ending_that_a_ban_limits_and_a_bug_are_recorded_each_time(ending: Ending) -> None:
    repetitions = Repetitions()
    event = AuditEvent(what="close", outcome="forced", reason=ending.label, address="192.0.2.1")
    assert not any(repetitions.count(event) for _ in range(3))


def test_with_as_many_kinds_as_there_may_be_all_other_addresses_count_as_one() -> None:
    repetitions = Repetitions()
    for number in range(MAX_REPETITIONS):
        assert not repetitions.count(close(f"192.0.2.{number}"))
    others = [repetitions.count(close(f"198.51.100.{number}")) for number in range(100)]
    assert others == [False] + 99 * [True]
    assert repetitions.count(close("192.0.2.0"))
    assert [(each.reason, each.address) for each in repetitions.take()] == [
        (f"{REFUSED}, 1 more", "192.0.2.0"),
        (f"{REFUSED}, 99 more", ""),
    ]
