"""Authentication, as the settings ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from relay.auth.login import Rejected, Verified
from relay.auth.setup import AuthParts, open_auth
from relay.concurrency.activity import Activity
from relay.errors import ConfigError
from relay.guard.client_address import ClientAddress
from relay.guard.guard import Guard
from relay.metrics import Metrics
from relay.settings.settings import Settings
from tests.unit.memory import ANN, MemoryChangeFeed, MemoryVerifier
from tests.unit.tokens import AUDIENCE, ISSUER, by_hand, good_claims

pytestmark = pytest.mark.mock_clock

SECRET = "a secret that is shared, 32 bytes"
USUAL = {"verification", "session-table", "vouched-users", "session-watch"}
JWT = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


class NoServices:
    """An empty table of service tokens."""

    async def find(self, tokens: object) -> Mapping[str, Any]:
        return {}

    async def read(self, token_hashes: object) -> Mapping[bytes, Any]:
        return {}


class NoLinks:
    """There are no links."""

    async def find(self, capability: str) -> None:
        return None

    async def read(self, link_ids: Sequence[str]) -> dict[str, Any]:
        return {}


class Sessions(MemoryVerifier):
    """The sessions of `MemoryVerifier`, to look up by token."""

    async def find(self, tokens: Sequence[str]) -> Mapping[str, Any]:
        return {token: self.identities[token] for token in tokens if token in self.identities}

    async def suspicions(self) -> list[Any]:
        return []


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[AuthParts]:
    change_feed = MemoryChangeFeed()
    async with open_auth(
        Settings(**settings),
        Metrics(),
        Guard(),
        sessions=Sessions(),
        services=NoServices(),
        links=NoLinks(),
        changes=change_feed,
        triggers=change_feed,
        activity=Activity(),
    ) as auth:
        yield auth


async def test_the_tasks_to_supervise_are_those_that_the_settings_need() -> None:
    async with opened() as auth:
        assert {*auth.tasks} == USUAL
    async with opened(jwt_jwks_url="https://id.example.org/jwks", **JWT) as auth:
        assert {*auth.tasks} == USUAL | {"jwt-keys"}
        assert auth.tasks["session-watch"] is auth.session_watch
    async with opened(auth_session_url="https://app.example/api/auth/get-session") as auth:
        assert {*auth.tasks} == USUAL - {"session-table"} | {"application-sessions"}


async def test_while_its_tasks_run_tokens_are_verified_by_all_methods() -> None:
    async with opened(jwt_secret=SECRET, **JWT) as auth, trio.open_nursery() as nursery:
        for task in auth.tasks.values():
            await nursery.start(task.run)
        token = by_hand({"alg": "HS256"}, good_claims(sub="bob"), secret=SECRET.encode())
        address = ClientAddress.parse("192.0.2.1")
        found = [await auth.login.attempt(each, address) for each in (ANN, token, "unknown")]
        who = [each.identity.sender if isinstance(each, Verified) else each for each in found]
        assert who == ["user:ann", "user:bob", Rejected()]
        nursery.cancel_scope.cancel()


async def test_a_key_that_cannot_be_used_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match="jwt_secret is a public key"):
        async with opened(jwt_secret="-----BEGIN PUBLIC KEY-----", **JWT):
            pass
