"""Puts together the ways to verify that the settings ask for. Floor 2."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from attrs import frozen

from relay.auth.introspection import Introspection
from relay.auth.jwks import KeySet
from relay.auth.jwt import JsonWebTokens
from relay.auth.keys import Keys, read_public_key, secret_key
from relay.auth.rows import TokenRows
from relay.auth.signed import SignedTokens
from relay.auth.verification import Verifier
from relay.auth.way import Way
from relay.batching import Batcher
from relay.metrics import Metrics
from relay.model import Identity
from relay.outbound import Outbound, open_outbound
from relay.postgres.services import ServiceTokens
from relay.postgres.sessions import BetterAuthSessions
from relay.settings import Settings
from relay.token_settings import algorithms_of


@frozen
class Verification:
    """A verifier, and the services that it leans on, by name."""

    verifier: Verifier
    services: Mapping[str, Batcher[str, Identity | None] | KeySet]


@asynccontextmanager
async def open_verification(
    settings: Settings, sessions: BetterAuthSessions, services: ServiceTokens, metrics: Metrics
) -> AsyncIterator[Verification]:
    """All ways of the settings, in their order. `ConfigError` for a key that cannot be used."""
    rows = TokenRows(sessions, services, metrics)
    ways: list[Way] = [SignedTokens(settings.auth_secret, rows)]
    supervised: dict[str, Batcher[str, Identity | None] | KeySet] = {"verification": rows.service}
    async with AsyncExitStack() as stack:
        if settings.jwt_issuer is not None and settings.jwt_audience is not None:
            keys = await _open_keys(settings, stack)
            if isinstance(keys, KeySet):
                supervised["jwt-keys"] = keys
            algorithms = algorithms_of(settings)
            ways.append(JsonWebTokens(keys, settings.jwt_issuer, settings.jwt_audience, algorithms))
        ways.append(rows)
        introspection = await _open_introspection(settings, stack)
        if introspection is not None:
            ways.append(introspection)
        yield Verification(Verifier(metrics, ways, introspection), supervised)


async def _open_keys(settings: Settings, stack: AsyncExitStack) -> Keys:
    if settings.jwt_public_key is not None:
        return read_public_key(settings.jwt_public_key, algorithms_of(settings))
    if settings.jwt_secret is not None:
        return secret_key(settings.jwt_secret)
    assert settings.jwt_jwks_url is not None
    return KeySet(await _open_outbound(stack), settings.jwt_jwks_url)


async def _open_introspection(settings: Settings, stack: AsyncExitStack) -> Introspection | None:
    if settings.introspection_url is None:
        return None
    assert settings.introspection_client_id is not None
    assert settings.introspection_client_secret is not None
    return Introspection(
        await _open_outbound(stack),
        settings.introspection_url,
        settings.introspection_client_id,
        settings.introspection_client_secret,
        settings.introspection_audience,
        settings.introspection_cache,
    )


async def _open_outbound(stack: AsyncExitStack) -> Outbound:
    return await stack.enter_async_context(open_outbound())
