"""Asking the application about sessions: what its answers mean, and what is cached."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.application_watch import MAX_AT_ONCE, ApplicationWatch
from relay.auth.methods.application import (
    MAX_BEARER_LENGTH,
    QUERY,
    ApplicationSessions,
)
from relay.auth.methods.method import Match
from relay.auth.registry import Registry
from relay.auth.token_cache import MAX_REQUESTS, TOKEN_REQUEST_TIMEOUT
from relay.errors import StoreUnavailable
from relay.model.access.change import Change
from relay.model.access.identity import Identity, User
from relay.outgoing.http_client import HttpResponse, RequestFailed

pytestmark = pytest.mark.mock_clock

URL = "https://app.example/api/auth/get-session"
FARTHEST = (("9999-12-31", "-23:59"), ("0001-01-01", "+23:59"))
"""Times that are beyond Python's in UTC."""
WRONG = HttpResponse(200, b"null", removes_cookie=True)


def stamp(seconds: float = 86_400) -> str:
    """A time so many seconds from now; by default behind the end of any run of the tests."""
    at = datetime.fromtimestamp(time.time() + seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def session(token: str = "t0ken", user: str = "ann", **others: Any) -> dict[str, Any]:
    fields = {"id": f"s-{token}", "token": token, "userId": user, "expiresAt": stamp(), **others}
    return {"session": fields, "user": {"id": fields["userId"], "name": "Ann"}}


def answer(content: Any) -> HttpResponse:
    return HttpResponse(200, json.dumps(content).encode())


@define(eq=False)
class Application:
    """A double of the HTTP client, behind which the application answers as a test says."""

    answer: HttpResponse | Callable[[str], HttpResponse] = WRONG
    away: bool = False
    delay: float = 0.0
    asked: list[str] = field(factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def get_any(self, url: str, *, token: str | None, max_bytes: int) -> HttpResponse:
        assert url == f"{URL}?{QUERY}"
        assert token is not None
        self.asked.append(token)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await trio.sleep(self.delay)
        finally:
            self.at_once -= 1
        if self.away:
            raise RequestFailed("nobody answers there")
        return self.answer if isinstance(self.answer, HttpResponse) else self.answer(token)


async def verify(
    application: Application | ApplicationSessions, token: str = "t0ken"
) -> User | str | None:
    method = application
    if isinstance(method, Application):
        method = ApplicationSessions(method, URL, 0)
    try:
        return await method.verify(token)
    except StoreUnavailable:
        return "unavailable"


async def test_a_session_is_its_user_until_it_expires() -> None:
    expires = stamp(90)
    found = await verify(Application(answer(session(expiresAt=expires))))
    assert isinstance(found, User)
    assert (found.user_id, found.session_id, found.source) == ("ann", "s-t0ken", "application")
    assert found.expires_at == datetime.fromisoformat(expires)
    assert found.token_hash == hashlib.sha256(b"t0ken").hexdigest()
    assert "t0ken" not in repr(evolve(found, session_id="s"))


@pytest.mark.parametrize("form", ["t0ken.c2lnbmF0dXJl", "t0ken.c2lnbmF0dXJl%3D", "t0ken"])
async def test_all_forms_of_a_token_are_one_session(form: str) -> None:
    found = await verify(Application(answer(session())), form)
    assert isinstance(found, User)
    assert found.token_hash == hashlib.sha256(b"t0ken").hexdigest()


async def test_a_numeric_id_may_be_text_in_one_place_only() -> None:
    content = session(userId=7)
    content["user"]["id"] = "7"
    found = await verify(Application(answer(content)))
    assert isinstance(found, User)
    assert found.user_id == "7"


@pytest.mark.parametrize(
    "response",
    [
        WRONG,
        answer({"session": None, "user": None}),
        answer(session(expiresAt=stamp(-1))),
        answer({**session(), "user": {"id": "ann", "banned": True}}),
        answer({**session(), "user": {"id": "ann", "banned": True, "banExpires": stamp(86_400)}}),
    ],
)
async def test_null_or_what_has_ended_is_a_wrong_token(response: HttpResponse) -> None:
    assert await verify(Application(response)) is None


@pytest.mark.parametrize(
    "user", [{"banned": False}, {"banned": None}, {"banned": True, "banExpires": stamp(-9)}]
)
async def test_who_is_not_banned_now_is_let_in(user: dict[str, Any]) -> None:
    assert isinstance(await verify(Application(answer({**session(), "user": user}))), User)


@pytest.mark.parametrize("number", [7, "7"])
async def test_ids_may_be_numbers(number: object) -> None:
    found = await verify(Application(answer(session(id=number, userId=number))))
    assert isinstance(found, User)
    assert (found.user_id, found.session_id) == ("7", "7")


async def test_a_token_is_never_shown_as_an_id() -> None:
    found = await verify(Application(answer(session(id="t0ken"))))
    assert isinstance(found, User)
    assert "t0ken" not in found.session_id


@pytest.mark.parametrize(
    "response",
    [
        *(
            HttpResponse(status, b"null")
            for status in (201, 204, 302, 401, 403, 404, 429, 500, 503)
        ),
        *(HttpResponse(200, body) for body in (b"", b"<html>", b"\xff", b"[", b"[" * 60_000)),
        *map(answer, ([], 1, "null", False, {"session": {}}, {"session": 1})),
        answer(session(expiresAt=None)),
        answer(session(expiresAt="soon")),
        answer(session(expiresAt="2099-01-01T00:00:00")),
        answer(session(expiresAt=1e300)),
        *(answer(session(expiresAt=f"{day}T12:00:00{zone}")) for day, zone in FARTHEST),
        answer(session(id="")),
        answer(session(userId="a\0")),
        answer(session(userId="a" * 256)),
        answer(session(userId=None)),
        answer(session(token="another")),
        answer({**session(), "user": {"id": "bob"}}),
        HttpResponse(200, b"null"),  # as if the bearer plugin were not there
    ],
)
async def test_all_else_is_trouble_of_the_application(response: HttpResponse) -> None:
    assert await verify(Application(response)) == "unavailable"


@given(st.binary(max_size=200))
async def test_no_answer_is_an_error_of_relay(body: bytes) -> None:
    await verify(Application(HttpResponse(200, body)))


async def test_null_is_a_wrong_token_once_the_application_has_read_one() -> None:
    application = Application(answer(session()))
    method = ApplicationSessions(application, URL, 0)
    assert isinstance(await verify(method), User)
    application.answer = HttpResponse(200, b"null")
    assert await verify(method, "guess") is None


@pytest.mark.parametrize(
    "token", ["", "a b", " a", "a\n", "a\r\nHost: b", "é", "\0", "a" * (MAX_BEARER_LENGTH + 1)]
)
async def test_what_does_not_fit_into_a_header_is_not_asked_about(token: str) -> None:
    assert ApplicationSessions(Application(), URL, 5).match(token) is Match.NO


async def test_answers_are_cached_for_some_seconds_and_trouble_is_not() -> None:
    application = Application(answer(session()), away=True)
    method = ApplicationSessions(application, URL, 5)
    assert await verify(method) == "unavailable"
    application.away = False
    for _ in range(3):
        assert isinstance(await verify(method), User)
    assert len(application.asked) == 2
    method.forget(session_id="s-t0ken", user_id=None)
    assert isinstance(await verify(method), User)
    application.answer = WRONG
    await trio.sleep(5.1)
    assert await verify(method) is None
    assert len(application.asked) == 4


async def test_a_slow_application_is_given_up_and_asked_a_few_things_at_once() -> None:
    application = Application(delay=60)
    method = ApplicationSessions(application, URL, 0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(MAX_REQUESTS + 1):
            nursery.start_soon(verify, method, f"token-{number}")
    assert trio.current_time() - began == 2 * TOKEN_REQUEST_TIMEOUT
    assert application.most_at_once == MAX_REQUESTS


@define(eq=False)
class WatchedConnection:
    """A connection, as the watch sees it."""

    identity: Identity
    ended: bool = False

    def become(self, identity: Identity) -> None:
        self.identity = identity

    def revoked(self) -> None:
        self.ended = True


@define(eq=False)
class Watched:
    """Live connections whose application is asked once a minute."""

    application: Application
    registry: Registry = field(factory=Registry)
    method: ApplicationSessions = field(init=False)
    watch: ApplicationWatch = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.method = ApplicationSessions(self.application, URL, 5)
        self.watch = ApplicationWatch(self.registry, self.method, 60)

    async def login(self, token: str) -> WatchedConnection:
        user = await self.method.verify(token)
        assert user is not None
        live = WatchedConnection(user)
        self.registry.enter(live)
        self.watch.enter(user)
        return live


async def test_each_live_session_is_asked_about_once_in_an_interval() -> None:
    application = Application(lambda token: answer(session(token)))
    watched = Watched(application)
    async with trio.open_nursery() as nursery:
        await nursery.start(watched.watch.run)
        lives = [await watched.login(f"token-{number}") for number in range(40)]
        two = [await watched.login("token-0"), await watched.login("token-1")]
        application.asked.clear()
        await trio.sleep(64)
        assert {f"token-{number}" for number in range(40)} == {*application.asked}
        assert len(application.asked) < 80
        assert application.most_at_once <= MAX_AT_ONCE
        application.answer = lambda token: WRONG if token == "token-0" else answer(session(token))
        await trio.sleep(64)
        assert [live for live in (*lives, *two) if live.ended] == [lives[0], two[0]]
        for live in (*lives, *two):
            watched.registry.leave(live)
        await trio.sleep(64)
        application.asked.clear()
        await trio.sleep(600)
        assert application.asked == []
        nursery.cancel_scope.cancel()


async def test_while_the_application_is_away_connections_stay_and_it_is_asked_little() -> None:
    application = Application(lambda token: answer(session(token)))
    watched = Watched(application)
    async with trio.open_nursery() as nursery:
        await nursery.start(watched.watch.run)
        lives = [await watched.login(f"token-{number}") for number in range(500)]
        application.away = True
        application.asked.clear()
        await trio.sleep(120)
        assert len(application.asked) < 700
        assert not any(live.ended for live in lives)
        application.away = False
        application.answer = WRONG
        await trio.sleep(130)
        assert all(live.ended for live in lives)
        nursery.cancel_scope.cancel()


async def test_a_session_that_was_extended_goes_on_with_its_grants() -> None:
    application = Application(lambda token: answer(session(token)))
    watched = Watched(application)
    live = await watched.login("token")
    assert isinstance(live.identity, User)
    live.identity = evolve(live.identity, granted=frozenset({"porch"}))
    watched.registry.enter(live)
    later = stamp(7200)
    application.answer = answer(session("token", expiresAt=later))
    await watched.watch.reread(live)
    assert isinstance(live.identity, User)
    assert live.identity.expires_at == datetime.fromisoformat(later)
    assert live.identity.granted == {"porch"}
    assert live.identity.token == "token"


async def test_an_answer_from_before_a_change_is_not_believed() -> None:
    application = Application(lambda token: answer(session(token)))
    watched = Watched(application)
    live = await watched.login("token")
    known = live.identity
    application.answer, application.delay = answer(session("token", expiresAt=stamp(7200))), 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.watch.reread, live)
        await trio.sleep(0.5)
        watched.registry.note(Change("user", "ann"))
    assert live.identity is known


async def test_a_session_that_is_about_to_expire_is_not_revoked() -> None:
    """The application's clock may be a little ahead."""
    application = Application(lambda token: answer(session(token, expiresAt=stamp(3))))
    watched = Watched(application)
    live = await watched.login("token")
    application.answer = WRONG
    await watched.watch.reread(live)
    assert not live.ended


async def test_a_token_that_was_good_does_not_wait_for_those_of_strangers() -> None:
    application = Application(lambda token: answer(session(token)) if token == "mine" else WRONG)
    method = ApplicationSessions(application, URL, 0)
    assert isinstance(await verify(method, "mine"), User)
    application.delay = 4
    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(verify, method, f"guess-{number}")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert isinstance(await verify(method, "mine"), User)
        assert trio.current_time() - began == 4
        nursery.cancel_scope.cancel()
