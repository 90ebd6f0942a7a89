"""Token introspection."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay.auth.methods.introspection import Introspection
from relay.auth.methods.method import Match
from relay.errors import StoreUnavailable
from relay.model.access.identity import User
from tests.unit.memory.http_client import URL, MemoryHttpClient

SECRET = "pass word&=:%é"


def active(**others: Any) -> dict[str, Any]:
    answer = {"active": True, "sub": "ann", "exp": int(time.time()) + 600, **others}
    return {name: value for name, value in answer.items() if value is not None}


def introspection(
    server: MemoryHttpClient, *, audience: str | None = None, seconds: float = 5
) -> Introspection:
    return Introspection(server, URL, "re:lay", SECRET, audience, seconds)


async def verify(method: Introspection, token: str = "opaque") -> User | str | None:
    try:
        return await method.verify(token)
    except StoreUnavailable:
        return "unavailable"


async def test_an_active_token_is_its_subject() -> None:
    server = MemoryHttpClient(active(sid="s-1"))
    found = await verify(introspection(server))
    assert isinstance(found, User)
    assert (found.user_id, found.session_id, found.source) == ("ann", "s-1", "introspection")
    assert server.asked == [{"token": "opaque", "token_type_hint": "access_token"}]


async def test_the_credentials_are_encoded_before_they_are_joined() -> None:
    server = MemoryHttpClient(active())
    await verify(introspection(server))
    kind, _, encoded = server.authorizations[0].partition(" ")
    assert kind == "Basic"
    assert base64.b64decode(encoded) == b"re%3Alay:pass+word%26%3D%3A%25%C3%A9"


@pytest.mark.parametrize(
    "answer",
    [
        {"active": False},
        {"active": False, "sub": "ann", "exp": int(time.time()) + 600},
        active(sub=None),
        active(sub=""),
        active(sub="a\0"),
        active(exp=None),
        active(exp=int(time.time()) - 1),
        active(exp=-1e300),
    ],
)
async def test_what_is_not_active_or_names_nobody_is_a_wrong_token(answer: Any) -> None:
    assert await verify(introspection(MemoryHttpClient(answer))) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"<html>",
        b"[" * 50_000,
        b'{"active": NaN}',
        {},
        [],
        {"active": "true"},
        {"active": 1},
        {"active": None},
        active(sub=7),
        active(exp="tomorrow"),
        active(exp=True),
        active(aud=5),
    ],
)
async def test_an_answer_that_is_not_understood_makes_no_token_wrong(answer: Any) -> None:
    assert await verify(introspection(MemoryHttpClient(answer))) == "unavailable"


async def test_a_server_that_is_away_makes_no_token_wrong_and_is_mentioned_once() -> None:
    server = MemoryHttpClient(active(), away=True)
    asking = introspection(server)
    with capture_logs() as logs:
        for _ in range(3):
            assert await verify(asking, "secret-token") == "unavailable"
        server.away = False
        assert isinstance(await verify(asking, "secret-token"), User)
    assert [line["event"] for line in logs] == [
        "another server gives no answer",
        "another server answers again",
    ]
    assert "secret-token" not in str(logs)


@pytest.mark.parametrize(
    ("aud", "good"),
    [("relay", True), (["x", "relay"], True), (None, False), ("x", False), ([], False)],
)
async def test_a_token_for_others_is_wrong_where_an_audience_is_set(aud: Any, good: bool) -> None:
    assert (
        await verify(introspection(MemoryHttpClient(active(aud=aud)), audience="relay")) is not None
    ) == good
    assert await verify(introspection(MemoryHttpClient(active(aud=aud)))) is not None


async def test_the_session_is_never_the_token() -> None:
    found = await verify(introspection(MemoryHttpClient(active(sid="opaque", jti="opaque"))))
    assert isinstance(found, User)
    assert found.session_id.startswith("introspection-")


@pytest.mark.parametrize("token", ["a\0b", "é", "\ud800", "a\nb", "a\x7fb"])
def test_what_no_server_could_have_issued_is_not_asked_about(token: str) -> None:
    assert introspection(MemoryHttpClient()).match(token) is Match.NO


@given(st.text())
def test_any_text_is_asked_about_or_not(token: str) -> None:
    match = introspection(MemoryHttpClient()).match(token)
    assert match in (Match.MAYBE, Match.NO)
    assert (match is Match.MAYBE) == (token.isascii() and token.isprintable() and token != "")


def test_the_client_s_secret_is_in_no_repr() -> None:
    assert "pass" not in repr(introspection(MemoryHttpClient()))
