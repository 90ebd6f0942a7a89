"""What each ending means, also where the close code or the error was not seen."""

from __future__ import annotations

import pytest

from relay.client.errors import ServerError
from relay.client.events import Notice
from relay.client.reconnect_policy import (
    ConnectionEnding,
    ReconnectPauses,
    ReconnectPolicy,
    Verdict,
    judge_ending,
)

BACK, STOP = Verdict(again=True), Verdict(again=False)
REFUSED, EXPIRED = Verdict(again=True, reason="refused"), Verdict(again=True, reason="expired")


def judge(code: int | None, said: str | None = None, after: int | None = None) -> Verdict:
    return judge_ending(ConnectionEnding(code, "", ServerError(said, "", after) if said else None))


@pytest.mark.parametrize(
    "code",
    [1000, 1001, 1005, 1006, 1011, 1012, 4002, 4003, 4004, 4008, 4012, 4013, 4499, None],
)
def test_after_these_codes_it_comes_back(code: int | None) -> None:
    assert judge(code) == BACK


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 4500, 4501, 4502, 4999])
def test_after_these_codes_it_does_not(code: int) -> None:
    assert judge(code) == STOP


def test_a_refused_and_an_expired_session_need_another_token() -> None:
    assert judge_ending(ConnectionEnding(1008, "policy")) == STOP
    assert judge_ending(ConnectionEnding(1008, "Authentication failed")) == REFUSED
    assert judge_ending(ConnectionEnding(4001, "session expired")) == EXPIRED


@pytest.mark.parametrize("code", [None, 1005, 1006])
def test_without_a_code_the_last_word_decides(code: int | None) -> None:
    for said in ("SESSION_REVOKED", "SUPERSEDED", "MESSAGE_TOO_BIG"):
        assert judge(code, said) == STOP
    for said in ("AUTH_TIMEOUT", "TOO_SLOW", "IDLE_TIMEOUT", "INTERNAL_ERROR", "NEW"):
        assert judge(code, said) == BACK
    assert judge(code, "AUTH_FAILED") == REFUSED
    assert judge(code, "SESSION_EXPIRED") == EXPIRED
    assert judge(code, "MESSAGE_TOO_BIG", 2000) == Verdict(again=True, after=2)


@pytest.mark.parametrize("code", [4012, 1006, None])
def test_retry_after_of_the_error_or_notice_is_kept(code: int | None) -> None:
    assert judge(code, "AUTH_UNAVAILABLE", 1234) == Verdict(again=True, after=1.234)
    notice = Notice("SERVER_RESTARTING", 1, retry_after=1234)
    assert judge_ending(ConnectionEnding(code, "", notice)) == Verdict(again=True, after=1.234)


def test_pauses_grow_from_the_first_to_the_longest_and_begin_again() -> None:
    policy = ReconnectPolicy(min_backoff=1, max_backoff=8)
    longest = ReconnectPauses(policy, draw=lambda: 1.0)
    assert [longest.next() for _ in range(5)] == [1, 2, 4, 8, 8]
    shortest = ReconnectPauses(policy, draw=lambda: 0.0)
    assert [shortest.next() for _ in range(5)] == [0, 1, 2, 4, 4]
    longest.connected()
    assert longest.next() == 4
    longest.reset()
    assert longest.next() == 1
    assert [longest.next() for _ in range(5000)][-1] == 8
