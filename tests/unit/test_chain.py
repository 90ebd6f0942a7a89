"""Which way a token goes, and what becomes of it when one of the ways is closed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from attrs import define, field

from relay.auth.introspection import Introspection
from relay.auth.jwt import JsonWebTokens
from relay.auth.keys import OneKey
from relay.auth.rows import TokenRows
from relay.auth.signed import SignedTokens, sign
from relay.auth.verification import Verifier
from relay.auth.way import Way
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model import Identity, Service, User
from relay.postgres.changes import EVERYTHING, Change
from relay.token_settings import USUAL_KEY_ALGORITHMS
from tests.unit.memory import user
from tests.unit.other_server import URL, OtherServer
from tests.unit.tokens import AUDIENCE, EC, ISSUER, Issuer, by_hand, good_claims

pytestmark = pytest.mark.mock_clock

SECRET = "better-auth-secret-1234567890abcd"
SIGNED = f"row.{sign('row', SECRET)}"
SERVICE = "relay_service_sentry"


@define(eq=False)
class Table:
    """Finds what it holds, and keeps what it was asked for."""

    identities: dict[str, Identity]
    asked: list[str] = field(factory=list)
    away: bool = False

    async def find(self, tokens: Sequence[str]) -> dict[str, Identity]:
        self.asked += tokens
        if self.away:
            raise StoreUnavailable
        return {token: self.identities[token] for token in tokens if token in self.identities}


@define(eq=False)
class Chain:
    """A verifier with all ways, and what stands behind them."""

    sessions: Table = field(factory=lambda: Table({"row": user("ann")}))
    services: Table = field(
        factory=lambda: Table({SERVICE: Service("sentry", frozenset("*"), True, False)})
    )
    issuer: OtherServer = field(factory=OtherServer)
    with_jwt: bool = True
    verifier: Verifier = field(init=False)
    rows: TokenRows = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.issuer.answer = lambda form: {
            "active": form["token"] == "opaque",
            "sub": "bob",
            "exp": int(time.time()) + 600,
        }
        self.rows = TokenRows(cast("Any", self.sessions), cast("Any", self.services), Metrics())
        jwt = JsonWebTokens(OneKey(EC), ISSUER, AUDIENCE, USUAL_KEY_ALGORITHMS)
        introspection = Introspection(cast("Any", self.issuer), URL, "relay", "secret", None, 5)
        ways: list[Way] = [SignedTokens(SECRET, self.rows)]
        ways += [jwt] if self.with_jwt else []
        self.verifier = Verifier(Metrics(), [*ways, self.rows, introspection], introspection)

    async def outcome(self, token: str) -> str | None:
        """Who it is, and by which way."""
        try:
            identity = await self.verifier.verify(token)
        except StoreUnavailable:
            return "unavailable"
        if isinstance(identity, User):
            return f"{identity.user_id} by {identity.source}"
        return None if identity is None else identity.sender


@asynccontextmanager
async def running(chain: Chain) -> AsyncIterator[Chain]:
    async with trio.open_nursery() as nursery:
        await nursery.start(chain.rows.service.run)
        yield chain
        nursery.cancel_scope.cancel()


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    async with running(Chain()) as chain:
        yield chain


async def test_each_token_goes_its_way(chain: Chain) -> None:
    assert await chain.outcome("row") == "ann by session"
    assert await chain.outcome(SIGNED) == "ann by session"
    assert await chain.outcome(SERVICE) == "service:sentry"
    assert await chain.outcome(Issuer().token(sub="eve")) == "eve by jwt"
    assert await chain.outcome("opaque") == "bob by introspection"
    assert await chain.outcome("unknown") is None


async def test_a_form_that_belongs_to_one_way_is_shown_to_no_other(chain: Chain) -> None:
    forged = f"row.{sign('row', 'another')}"
    for token in (forged, by_hand({"alg": "none"}, good_claims()), SERVICE + "x"):
        assert await chain.outcome(token) is None
    assert chain.sessions.asked == []
    assert chain.services.asked == [SERVICE + "x"]
    assert chain.issuer.asked == []


async def test_sessions_are_looked_up_before_the_issuer_is_asked(chain: Chain) -> None:
    await chain.outcome("row")
    assert chain.issuer.asked == []
    await chain.outcome("opaque")
    assert chain.sessions.asked == ["row", "opaque"]


async def test_without_keys_a_jwt_is_a_token_like_any_other() -> None:
    async with running(Chain(with_jwt=False)) as chain:
        token = Issuer().token()
        assert await chain.outcome(token) is None
        assert chain.sessions.asked == [token]
        assert [form["token"] for form in chain.issuer.asked] == [token]


async def test_the_issuer_is_not_asked_about_what_may_be_a_session(chain: Chain) -> None:
    chain.sessions.away = True
    for token in ("row", "opaque", SIGNED):
        assert await chain.outcome(token) == "unavailable"
    assert chain.issuer.asked == []
    assert await chain.outcome(Issuer().token()) == "ann by jwt"


async def test_an_issuer_that_is_away_takes_no_session_with_it(chain: Chain) -> None:
    chain.issuer.away = True
    assert await chain.outcome("row") == "ann by session"
    assert await chain.outcome("opaque") == "unavailable"


async def test_a_slow_issuer_holds_no_session_back(chain: Chain) -> None:
    chain.issuer.delay = 3600
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(chain.outcome, f"slow-{number}")
        await trio.sleep(1)
        started = trio.current_time()
        assert await chain.outcome("row") == "ann by session"
        assert trio.current_time() == started
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", [Change("user", "bob"), EVERYTHING])
async def test_what_is_remembered_is_forgotten_when_it_may_have_changed(
    chain: Chain, change: Change
) -> None:
    assert await chain.outcome("opaque") == "bob by introspection"
    chain.issuer.answer = {"active": False}
    assert await chain.outcome("opaque") == "bob by introspection"
    chain.verifier.forget(change)
    assert await chain.outcome("opaque") is None


@pytest.mark.parametrize("change", [Change("user", "ann"), Change("service", "bob")])
async def test_what_others_do_makes_nothing_be_asked_again(chain: Chain, change: Change) -> None:
    assert await chain.outcome("opaque") == "bob by introspection"
    chain.verifier.forget(change)
    assert await chain.outcome("opaque") == "bob by introspection"
    assert len(chain.issuer.asked) == 1


async def test_a_signature_makes_no_service_of_a_session(chain: Chain) -> None:
    assert await chain.outcome(f"{SERVICE}.{sign(SERVICE, SECRET)}") is None
