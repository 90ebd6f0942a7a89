"""Which methods see a token, and what happens when one is unavailable."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, evolve, field

from relay.auth.external_users import ExternalUsers
from relay.auth.methods.database_tokens import DatabaseTokens
from relay.auth.methods.introspection import Introspection
from relay.auth.methods.jwt import JsonWebTokens
from relay.auth.methods.keys import StaticKey
from relay.auth.methods.method import Method
from relay.auth.methods.signed_cookie import SignedCookies, sign
from relay.auth.verifier import MethodVerifier
from relay.errors import StoreRejects, StoreUnavailable
from relay.metrics import Metrics
from relay.model.access.change import EVERYTHING, Change
from relay.model.access.identity import Identity, Service, User
from relay.settings.tokens import DEFAULT_KEY_ALGORITHMS
from tests.unit.memory import user
from tests.unit.memory.http_client import URL, MemoryHttpClient
from tests.unit.tokens import AUDIENCE, EC, ISSUER, Issuer, by_hand, good_claims

pytestmark = pytest.mark.mock_clock

SECRET = "better-auth-secret-1234567890abcd"
SIGNED = f"row.{sign('row', SECRET)}"
SERVICE = "relay_service_sentry"


@define(eq=False)
class TokenTable:
    """A table in memory that records the tokens it was asked for."""

    identities: dict[str, Identity]
    asked: list[str] = field(factory=list)
    away: bool = False

    async def find(self, tokens: Sequence[str]) -> dict[str, Identity]:
        self.asked += tokens
        if self.away:
            raise StoreUnavailable
        return {token: self.identities[token] for token in tokens if token in self.identities}


@define(eq=False)
class Authentication:
    """A verifier with all methods, and the doubles behind them."""

    sessions: TokenTable = field(factory=lambda: TokenTable({"row": user("ann")}))
    services: TokenTable = field(
        factory=lambda: TokenTable({SERVICE: Service("sentry", frozenset("*"), True, False)})
    )
    issuer: MemoryHttpClient = field(factory=MemoryHttpClient)
    with_jwt: bool = True
    verifier: MethodVerifier = field(init=False)
    database_tokens: DatabaseTokens = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.issuer.answer = lambda form: {
            "active": form["token"] == "opaque",
            "sub": "bob",
            "exp": int(time.time()) + 600,
        }
        self.database_tokens = DatabaseTokens(self.sessions, self.services, Metrics())
        jwt = JsonWebTokens(StaticKey(EC), ISSUER, AUDIENCE, DEFAULT_KEY_ALGORITHMS)
        introspection = Introspection(self.issuer, URL, "relay", "secret", None, 5)
        methods: list[Method] = [SignedCookies(SECRET, self.database_tokens)]
        methods += [jwt] if self.with_jwt else []
        self.verifier = MethodVerifier(
            Metrics(), [*methods, self.database_tokens, introspection], [introspection]
        )

    async def outcome(self, token: str) -> str | None:
        """The user or service, and the source of the identity."""
        try:
            identity = await self.verifier.verify(token)
        except StoreUnavailable:
            return "unavailable"
        if isinstance(identity, User):
            return f"{identity.user_id} by {identity.source}"
        return None if identity is None else identity.sender


@asynccontextmanager
async def running(authentication: Authentication) -> AsyncIterator[Authentication]:
    async with trio.open_nursery() as nursery:
        await nursery.start(authentication.database_tokens.batcher.run)
        yield authentication
        nursery.cancel_scope.cancel()


@pytest.fixture
async def authentication() -> AsyncIterator[Authentication]:
    async with running(Authentication()) as authentication:
        yield authentication


async def test_each_token_is_verified_by_its_method(authentication: Authentication) -> None:
    assert await authentication.outcome("row") == "ann by session"
    assert await authentication.outcome(SIGNED) == "ann by session"
    assert await authentication.outcome(SERVICE) == "service:sentry"
    assert await authentication.outcome(Issuer().token(sub="eve")) == "eve by jwt"
    assert await authentication.outcome("opaque") == "bob by introspection"
    assert await authentication.outcome("unknown") is None


async def test_a_form_that_belongs_to_one_method_is_shown_to_no_other(
    authentication: Authentication,
) -> None:
    forged = f"row.{sign('row', 'another')}"
    for token in (forged, by_hand({"alg": "none"}, good_claims()), SERVICE + "x"):
        assert await authentication.outcome(token) is None
    assert authentication.sessions.asked == []
    assert authentication.services.asked == [SERVICE + "x"]
    assert authentication.issuer.asked == []


async def test_sessions_are_looked_up_before_the_issuer_is_asked(
    authentication: Authentication,
) -> None:
    await authentication.outcome("row")
    assert authentication.issuer.asked == []
    await authentication.outcome("opaque")
    assert authentication.sessions.asked == ["row", "opaque"]


async def test_without_keys_a_jwt_is_a_token_like_any_other() -> None:
    async with running(Authentication(with_jwt=False)) as authentication:
        token = Issuer().token()
        assert await authentication.outcome(token) is None
        assert authentication.sessions.asked == [token]
        assert [form["token"] for form in authentication.issuer.asked] == [token]


async def test_the_issuer_is_not_asked_about_what_may_be_a_session(
    authentication: Authentication,
) -> None:
    authentication.sessions.away = True
    for token in ("row", "opaque", SIGNED):
        assert await authentication.outcome(token) == "unavailable"
    assert authentication.issuer.asked == []
    assert await authentication.outcome(Issuer().token()) == "ann by jwt"


async def test_an_issuer_that_is_away_takes_no_session_with_it(
    authentication: Authentication,
) -> None:
    authentication.issuer.away = True
    assert await authentication.outcome("row") == "ann by session"
    assert await authentication.outcome("opaque") == "unavailable"


async def test_a_slow_issuer_holds_no_session_back(authentication: Authentication) -> None:
    authentication.issuer.delay = 3600
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(authentication.outcome, f"slow-{number}")
        await trio.sleep(1)
        started = trio.current_time()
        assert await authentication.outcome("row") == "ann by session"
        assert trio.current_time() == started
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", [Change("user", "bob"), EVERYTHING])
async def test_cached_answers_are_dropped_when_they_may_have_changed(
    authentication: Authentication, change: Change
) -> None:
    assert await authentication.outcome("opaque") == "bob by introspection"
    authentication.issuer.answer = {"active": False}
    assert await authentication.outcome("opaque") == "bob by introspection"
    authentication.verifier.forget(change)
    assert await authentication.outcome("opaque") is None


@pytest.mark.parametrize("change", [Change("user", "ann"), Change("service", "bob")])
async def test_changes_of_others_drop_no_cached_answer(
    authentication: Authentication, change: Change
) -> None:
    assert await authentication.outcome("opaque") == "bob by introspection"
    authentication.verifier.forget(change)
    assert await authentication.outcome("opaque") == "bob by introspection"
    assert len(authentication.issuer.asked) == 1


async def test_a_signature_makes_no_service_of_a_session(authentication: Authentication) -> None:
    assert await authentication.outcome(f"{SERVICE}.{sign(SERVICE, SECRET)}") is None


@define(eq=False)
class Grants:
    """Grants in a database that lacks characters beyond ASCII."""

    async def granted_to(self, user_ids: Sequence[str]) -> dict[str, frozenset[str]]:
        await trio.lowlevel.checkpoint()
        if not all(each.isascii() for each in user_ids):
            raise StoreRejects
        return {each: frozenset({"porch"}) for each in user_ids}


async def test_an_id_that_the_database_rejects_refuses_its_user_alone() -> None:
    users = ExternalUsers(Grants())
    found: dict[str, Identity | None] = {}

    async def complete(user_id: str) -> None:
        identity = evolve(user(user_id), source="jwt")
        found[user_id] = await users.complete(identity)

    async with trio.open_nursery() as nursery:
        for user_id in ("ann", "\N{GRINNING FACE}", "bob"):
            nursery.start_soon(complete, user_id)
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(users.batcher.run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    granted = {name: who.granted for name, who in found.items() if isinstance(who, User)}
    assert granted == {"ann": frozenset({"porch"}), "bob": frozenset({"porch"})}
    assert found["\N{GRINNING FACE}"] is None
