"""MemoryVerifier that wait at one moment are looked up with one query per kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.auth.methods.database_tokens import DatabaseTokens
from relay.auth.verifier import MethodVerifier
from relay.errors import StoreUnavailable
from relay.metrics import Metrics
from relay.model.access.identity import SERVICE_TOKEN_PREFIX, Identity, Service
from tests.unit.memory import user

pytestmark = pytest.mark.mock_clock

SENTRY = SERVICE_TOKEN_PREFIX + "sentry"
CAMERA = SERVICE_TOKEN_PREFIX + "camera"


@define(eq=False)
class TokenTable:
    """A table in memory that records the tokens it was asked for."""

    identities: dict[str, Any]
    queries: list[list[str]] = field(factory=list)
    failure: type[Exception] | None = None

    async def find(self, tokens: Sequence[str]) -> dict[str, Any]:
        self.queries.append(sorted(tokens))
        await trio.sleep(1)
        if self.failure is not None:
            raise self.failure
        return {token: self.identities[token] for token in tokens if token in self.identities}


@define(eq=False)
class Tables:
    """A verifier and its tables."""

    sessions: TokenTable = field(
        factory=lambda: TokenTable({name: user(name) for name in ("ann", "bob")})
    )
    services: TokenTable = field(
        factory=lambda: TokenTable({SENTRY: Service("sentry", frozenset("*"), True, False)})
    )
    metrics: Metrics = field(factory=Metrics)
    database_tokens: DatabaseTokens = field(init=False)
    verifier: MethodVerifier = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.database_tokens = DatabaseTokens(self.sessions, self.services, self.metrics)
        self.verifier = MethodVerifier(self.metrics, [self.database_tokens])

    async def verify_at_once(self, tokens: Iterable[str]) -> list[Identity | str | None]:
        """Verify all tokens at one moment; the answers are in the same order."""
        answers: dict[int, Identity | str | None] = {}

        async def verify(number: int, token: str) -> None:
            try:
                answers[number] = await self.verifier.verify(token)
            except StoreUnavailable:
                answers[number] = "unavailable"

        async with trio.open_nursery() as nursery:
            for number, token in enumerate(tokens):
                nursery.start_soon(verify, number, token)
        return [answers[number] for number in sorted(answers)]


@asynccontextmanager
async def running(tables: Tables) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(tables.database_tokens.batcher.run)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
async def tables() -> AsyncIterator[Tables]:
    tables = Tables()
    async with running(tables):
        yield tables


def names(answers: list[Identity | str | None]) -> list[str | None]:
    return [each if isinstance(each, str | None) else each.sender for each in answers]


async def test_tokens_of_both_kinds_are_one_query_each(tables: Tables) -> None:
    answers = await tables.verify_at_once(["ann", SENTRY, "bob", "eve", CAMERA])
    assert names(answers) == ["user:ann", "service:sentry", "user:bob", None, None]
    assert tables.sessions.queries == [["ann", "bob", "eve"]]
    assert tables.services.queries == [[CAMERA, SENTRY]]
    assert (tables.metrics.verifications, tables.metrics.verification_queries) == (5, 2)


async def test_a_kind_that_nobody_asks_for_is_not_queried(tables: Tables) -> None:
    assert names(await tables.verify_at_once(["ann"])) == ["user:ann"]
    assert names(await tables.verify_at_once([SENTRY])) == ["service:sentry"]
    assert (tables.sessions.queries, tables.services.queries) == ([["ann"]], [[SENTRY]])
    assert tables.metrics.verification_queries == 2


async def test_the_same_token_many_times_is_asked_for_once_and_answered_each_time(
    tables: Tables,
) -> None:
    assert names(await tables.verify_at_once(["ann"] * 50 + ["eve"] * 50)) == (
        ["user:ann"] * 50 + [None] * 50
    )
    assert tables.sessions.queries == [["ann", "eve"]]


async def test_a_thousand_phones_are_a_few_queries(tables: Tables) -> None:
    tables.sessions.identities = {str(number): user(str(number)) for number in range(1000)}
    answers = await tables.verify_at_once(map(str, range(1000)))
    assert names(answers) == [f"user:{number}" for number in range(1000)]
    assert len(tables.sessions.queries) <= 3


@pytest.mark.parametrize("token", ["\0", "ann\0", "\0ann", SENTRY + "\0"])
async def test_a_token_that_postgres_cannot_hold_is_unknown_and_spoils_no_query(
    tables: Tables, token: str
) -> None:
    assert names(await tables.verify_at_once([token])) == [None]
    assert tables.sessions.queries == tables.services.queries == []
    assert names(await tables.verify_at_once(["ann", token, SENTRY])) == [
        "user:ann",
        None,
        "service:sentry",
    ]


@pytest.mark.parametrize("token", ["x" + SENTRY, SENTRY.upper(), " " + SENTRY])
async def test_only_the_beginning_makes_a_service_token(tables: Tables, token: str) -> None:
    assert names(await tables.verify_at_once([token])) == [None]
    assert tables.services.queries == []


async def test_a_session_is_looked_up_again_each_time(tables: Tables) -> None:
    assert names(await tables.verify_at_once(["ann"])) == ["user:ann"]
    del tables.sessions.identities["ann"]
    assert names(await tables.verify_at_once(["ann"])) == [None]


@pytest.mark.parametrize("which", ["sessions", "services"])
async def test_the_store_away_is_not_a_wrong_token(tables: Tables, which: str) -> None:
    table: TokenTable = getattr(tables, which)
    table.failure = StoreUnavailable
    assert names(await tables.verify_at_once(["ann", SENTRY, "eve"])) == ["unavailable"] * 3
    table.failure = None
    assert names(await tables.verify_at_once(["ann", SENTRY])) == ["user:ann", "service:sentry"]


async def test_a_bug_is_not_a_wrong_token_either() -> None:
    tables = Tables()
    tables.sessions.failure = RuntimeError
    answers: list[Identity | str | None] = []

    async def ask() -> None:
        answers.extend(await tables.verify_at_once(["ann", "eve"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError):
            await tables.database_tokens.batcher.run()
    assert answers == ["unavailable"] * 2


async def test_who_does_not_wait_for_the_answer_harms_nobody(tables: Tables) -> None:
    with trio.move_on_after(0.5):
        await tables.verifier.verify("eve")
    assert names(await tables.verify_at_once(["ann"])) == ["user:ann"]
