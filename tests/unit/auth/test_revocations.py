"""Revocations: what ends, what is refused, and what a token that is being verified becomes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import trio
from attrs import define, evolve, field

from relay.auth.consistent_verifier import ConsistentVerifier
from relay.auth.login import Limited, Login, Rejected, Unavailable, Verified
from relay.auth.registry import Registry
from relay.auth.revocations import REMEMBERED_SECONDS, Revocations
from relay.errors import StoreUnavailable
from relay.guard.client_address import ClientAddress
from relay.guard.failed_auths import FailedAuths
from relay.guard.rates import RateLimiter
from relay.metrics import Limit, Metrics
from relay.model.access.change import Change
from relay.model.access.identity import Identity, User
from relay.model.access.token_digest import token_digest

pytestmark = pytest.mark.mock_clock

ANN = User("ann", "s-1", datetime.now(UTC) + timedelta(hours=1))
HASH = token_digest("t0ken").hex()


@define(eq=False)
class WatchedConnection:
    """A connection, as the registry sees it."""

    identity: Identity
    registry: Registry
    ended: bool = False

    def become(self, identity: Identity) -> None:
        self.identity = identity

    def revoked(self) -> None:
        self.ended = True
        self.registry.leave(self)


@define(eq=False)
class Scene:
    """A verifier that takes a second, and a way to revoke."""

    registry: Registry = field(factory=Registry)
    forgotten: list[Change] = field(factory=list)
    revocations: Revocations = field(init=False)
    verifier: ConsistentVerifier = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.revocations = Revocations(self.registry, self.forgotten.append)

        async def complete(identity: Identity) -> Identity | None:
            return None if self.revocations.cover(identity) else identity

        async def wait_turn() -> None:
            pass

        self.verifier = ConsistentVerifier(self, complete, self.registry, wait_turn)

    async def verify(self, token: str) -> Identity | None:
        await trio.sleep(1)
        return ANN

    def live(self, identity: Identity) -> WatchedConnection:
        live = WatchedConnection(identity, self.registry)
        self.registry.enter(live)
        return live


REVOKED = [Change("session", "s-1"), Change("user", "ann"), Change("token", HASH)]


@pytest.mark.parametrize("change", REVOKED)
async def test_the_connections_concerned_end_and_no_others(change: Change) -> None:
    scene = Scene()
    ann = evolve(ANN, token_hash=HASH)
    bob = evolve(ANN, user_id="bob", session_id="s-2", token_hash=token_digest("another").hex())
    lives = [scene.live(ann), scene.live(ann), scene.live(bob)]
    assert scene.revocations.revoke(change) == 2
    assert [live.ended for live in lives] == [True, True, False]
    assert scene.forgotten == [change]
    assert scene.revocations.revoke(change) == 0


@pytest.mark.parametrize("change", REVOKED)
async def test_what_was_revoked_is_refused_for_a_while_but_users_may_come_back(
    change: Change,
) -> None:
    scene = Scene()
    assert await scene.verifier.verify("t0ken") is not None
    scene.revocations.revoke(change)
    again = await scene.verifier.verify("t0ken")
    assert (again is None) == (change.kind != "user")
    await trio.sleep(REMEMBERED_SECONDS)
    assert await scene.verifier.verify("t0ken") is not None


@pytest.mark.parametrize("change", REVOKED)
async def test_what_is_being_verified_is_verified_again(change: Change) -> None:
    scene = Scene()
    found: list[Identity | None] = []

    async def verify() -> None:
        found.append(await scene.verifier.verify("t0ken"))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verify)
        await trio.sleep(0.5)
        scene.revocations.revoke(change)
    assert (found == [None]) == (change.kind != "user")
    assert trio.current_time() - began == (2 if change.kind == "user" else 1)


ADDRESS = ClientAddress.parse("192.0.2.1")


@define(eq=False)
class Verifier:
    """Answers after a second: tokens that begin with "good" are valid."""

    asked: int = 0
    away: bool = False

    async def verify(self, token: str) -> Identity | None:
        self.asked += 1
        await trio.sleep(1)
        if self.away:
            raise StoreUnavailable
        return evolve(ANN, session_id=token) if token.startswith("good") else None


def login(verifier: Verifier) -> Login:
    failures = FailedAuths(
        RateLimiter("1000/minute"), RateLimiter("1000/minute"), 60, RateLimiter("10/minute")
    )
    return Login(verifier, failures, None, Metrics(), 10)


async def attempts(login: Login, *tokens: str) -> list[object]:
    outcomes: list[object] = []

    async def attempt(token: str) -> None:
        outcomes.append(await login.attempt(token, ADDRESS))

    async with trio.open_nursery() as nursery:
        for token in tokens:
            nursery.start_soon(attempt, token)
    return outcomes


async def test_strangers_tokens_are_rated_before_anybody_is_asked_about_them() -> None:
    verifier = Verifier()
    door = login(verifier)
    outcomes = await attempts(door, *(f"guess-{number}" for number in range(50)))
    assert verifier.asked == 10
    limits = [each.limit for each in outcomes if isinstance(each, Limited)]
    assert limits == [Limit.UNKNOWN_TOKENS] * 40
    assert outcomes.count(Rejected()) == 10
    elsewhere = ClientAddress.parse("198.51.100.1")
    assert isinstance(await door.attempt("good", elsewhere), Verified)
    # It is known now, from wherever it comes.
    assert isinstance(await door.attempt("good", ADDRESS), Verified)


async def test_tokens_that_turn_out_to_be_good_do_not_count() -> None:
    verifier = Verifier()
    door = login(verifier)
    for number in range(60):
        assert isinstance(await door.attempt(f"good-{number}", ADDRESS), Verified)


async def test_tokens_that_nobody_could_verify_count_and_are_no_failures() -> None:
    verifier = Verifier(away=True)
    door = login(verifier)
    outcomes = await attempts(door, *["guess"] * 50)
    assert outcomes.count(Unavailable()) == verifier.asked == 10
