"""Opens authentication as the settings ask for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from relay.auth.application_watch import ApplicationWatch
from relay.auth.consistent_verifier import ConsistentVerifier
from relay.auth.external_users import ExternalUsers
from relay.auth.links import LinkCapabilities, LinkVerifier
from relay.auth.login import Login
from relay.auth.methods.database_tokens import DatabaseTokens, TokenTable
from relay.auth.methods.method import Method
from relay.auth.methods.signed_cookie import SignedCookies
from relay.auth.registry import Registry
from relay.auth.revocations import Revocations
from relay.auth.session_table_check import SessionRows, SessionTableCheck
from relay.auth.session_watch import (
    ChangeFeed,
    ChangeTriggers,
    LinkRows,
    ServiceTable,
    SessionTable,
    SessionWatch,
)
from relay.auth.verifier import MethodVerifier
from relay.concurrency.activity import Activity
from relay.concurrency.supervisor import SupervisedTask
from relay.guard.guard import Guard
from relay.metrics import Metrics
from relay.model.access.change import Change
from relay.model.access.identity import Identity
from relay.settings.settings import Settings
from relay.settings.tokens import algorithms_of

# What these stand on takes 11 MiB and a sixth of the start: imported where the settings ask for it.
if TYPE_CHECKING:
    from relay.auth.methods.application import ApplicationSessions
    from relay.auth.methods.introspection import Introspection
    from relay.auth.methods.keys import KeySource
    from relay.outgoing.http_client import HttpClient


class SessionStore(TokenTable, SessionTable, SessionRows, Protocol):
    """The sessions, to look up and to read again."""


class StoredLinks(LinkCapabilities, LinkRows, Protocol):
    """The links, to look up and to read again."""


class ServiceStore(TokenTable, ServiceTable, Protocol):
    """The service tokens, to look up and to read again."""


@frozen(eq=False, repr=False)
class AuthParts:
    """What `open_auth` gives."""

    login: Login
    link_login: Login
    """Verifies the capabilities of links, within the same limits on attempts."""
    session_watch: SessionWatch
    revocations: Revocations
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""


@asynccontextmanager
async def open_auth(
    settings: Settings,
    metrics: Metrics,
    guard: Guard,
    *,
    sessions: SessionStore,
    services: ServiceStore,
    links: StoredLinks,
    changes: ChangeFeed,
    triggers: ChangeTriggers,
    activity: Activity,
    on_change: Callable[[Change], object] = lambda _change: None,
) -> AsyncIterator[AuthParts]:
    """The methods that the settings ask for, in their order, and the session watch, which tells
    `activity` whether anybody is connected, and `on_change` what the database notifies of.

    `ConfigError` if a key in the settings cannot be used.
    """
    async with AsyncExitStack() as stack:
        application = await _open_application(settings, stack)
        check = SessionTableCheck(sessions)
        rows = sessions if application is None else None
        database_tokens = DatabaseTokens(rows, services, metrics, check.unknown)
        tasks: dict[str, SupervisedTask] = {"verification": database_tokens.batcher}
        if application is None:
            tasks["session-table"] = check
        methods: list[Method] = []
        if application is None:  # which checks signatures itself
            methods.append(SignedCookies(settings.auth_secret, database_tokens))
        methods += await _open_jwt(settings, stack, tasks)
        methods.append(database_tokens)
        introspection = await _open_introspection(settings, stack)
        asked = [each for each in (application, introspection) if each is not None]
        methods.extend(asked)
        verifier = MethodVerifier(metrics, methods, asked)
        registry, external_users = Registry(), ExternalUsers(sessions)
        application_watch = None
        if application is not None:
            application_watch = ApplicationWatch(
                registry, application, settings.auth_session_recheck
            )
            tasks["application-sessions"] = application_watch
        watch = SessionWatch(
            registry,
            sessions,
            services,
            changes,
            triggers,
            settings.session_poll,
            forget=verifier.forget,
            application=application_watch,
            activity=activity,
            on_change=on_change,
            links=links,
        )
        revocations = Revocations(registry, verifier.forget)

        async def complete(identity: Identity) -> Identity | None:
            return None if revocations.cover(identity) else await external_users.complete(identity)

        tasks |= {"vouched-users": external_users.batcher, "session-watch": watch}
        consistent = ConsistentVerifier(verifier, complete, registry, guard.round_limiter.wait)
        login = Login(
            consistent, guard.failed_auths, guard.renewal_rate, metrics, settings.auth_timeout
        )
        link_verifier = ConsistentVerifier(
            LinkVerifier(links), _as_it_is, registry, guard.round_limiter.wait
        )
        link_login = Login(link_verifier, guard.failed_auths, None, metrics, settings.auth_timeout)
        yield AuthParts(login, link_login, watch, revocations, tasks)


async def _as_it_is(identity: Identity) -> Identity | None:
    return identity


async def _open_jwt(
    settings: Settings, stack: AsyncExitStack, tasks: dict[str, SupervisedTask]
) -> list[Method]:
    """The method for JWTs, if the settings ask for it; it may add a task."""
    if settings.jwt_issuer is None or settings.jwt_audience is None:
        return []
    from relay.auth.methods.jwks import KeySet
    from relay.auth.methods.jwt import JsonWebTokens
    from relay.auth.methods.keys import read_public_key, secret_key

    algorithms = algorithms_of(settings)
    keys: KeySource
    if settings.jwt_public_key is not None:
        keys = read_public_key(settings.jwt_public_key, algorithms)
    elif settings.jwt_secret is not None:
        keys = secret_key(settings.jwt_secret)
    else:
        assert settings.jwt_jwks_url is not None
        keys = KeySet(await _open_http_client(stack), settings.jwt_jwks_url)
        tasks["jwt-keys"] = keys
    return [JsonWebTokens(keys, settings.jwt_issuer, settings.jwt_audience, algorithms)]


async def _open_application(
    settings: Settings, stack: AsyncExitStack
) -> ApplicationSessions | None:
    if settings.auth_session_url is None:
        return None
    from relay.auth.methods.application import ApplicationSessions

    return ApplicationSessions(
        await _open_http_client(stack), settings.auth_session_url, settings.auth_session_cache
    )


async def _open_introspection(settings: Settings, stack: AsyncExitStack) -> Introspection | None:
    if settings.introspection_url is None:
        return None
    from relay.auth.methods.introspection import Introspection

    assert settings.introspection_client_id is not None
    assert settings.introspection_client_secret is not None
    return Introspection(
        await _open_http_client(stack),
        settings.introspection_url,
        settings.introspection_client_id,
        settings.introspection_client_secret,
        settings.introspection_audience,
        settings.introspection_cache,
    )


async def _open_http_client(stack: AsyncExitStack) -> HttpClient:
    from relay.outgoing.http_client import open_http_client

    return await stack.enter_async_context(open_http_client())
