"""Settings that are each valid and cannot be used together, or not without one another."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from relay.settings.settings import Settings
from relay.settings.tokens import SECRET_ALGORITHMS, algorithms_of


@frozen
class Conflict:
    """Settings that relay does not start with."""

    message: str
    settings: tuple[str, ...]


def find_conflicts(settings: Settings) -> Iterator[Conflict]:
    """Find settings that contradict one another, and settings that need another one."""
    yield from _jwt_conflicts(settings)
    yield from _introspection_conflicts(settings)
    if settings.proxy_protocol and not settings.trusted_proxies:
        text = "proxy_protocol needs trusted_proxies: only those may send a PROXY header"
        yield Conflict(text, ("proxy_protocol", "trusted_proxies"))
    if settings.require_origin and not settings.allow_origins:
        text = "require_origin needs allow_origins: it applies that list to all clients"
        yield Conflict(text, ("require_origin", "allow_origins"))
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        text = "tls_certificate and tls_key must be set together"
        yield Conflict(text, ("tls_certificate", "tls_key"))
    if settings.listen_url and not settings.database_url:
        text = "listen_url needs database_url: both must name the same database"
        yield Conflict(text, ("listen_url", "database_url"))
    if settings.cluster_bind and not settings.database_url:
        text = "cluster_bind needs database_url: all machines of a cluster use one database"
        yield Conflict(text, ("cluster_bind", "database_url"))
    if settings.cluster_advertise and not settings.cluster_bind:
        text = "cluster_advertise needs cluster_bind: it is how others reach that address"
        yield Conflict(text, ("cluster_advertise", "cluster_bind"))
    if settings.ping_interval >= settings.idle_timeout:
        text = (
            f"ping_interval ({settings.ping_interval:g}) must be shorter than idle_timeout"
            f" ({settings.idle_timeout:g}); otherwise clients with nothing to send are closed"
        )
        yield Conflict(text, ("ping_interval", "idle_timeout"))


def _jwt_conflicts(settings: Settings) -> Iterator[Conflict]:
    sources = ("jwt_jwks_url", "jwt_public_key", "jwt_secret")
    given = [name for name in sources if getattr(settings, name) is not None]
    if not given:
        for name in ("jwt_issuer", "jwt_audience", "jwt_algorithms"):
            if getattr(settings, name) is not None:
                text = f"{name} needs a key that verifies JWTs: set one of {', '.join(sources)}"
                yield Conflict(text, (name, *sources))
        return
    if len(given) > 1:
        text = f"JWTs are verified with one key: set only one of {', '.join(given)}"
        yield Conflict(text, tuple(given))
        return
    for name in ("jwt_issuer", "jwt_audience"):
        if getattr(settings, name) is None:
            text = f"{given[0]} needs {name}, to reject JWTs that were issued for other services"
            yield Conflict(text, (given[0], name))
    yield from _key_conflicts(settings)


def _key_conflicts(settings: Settings) -> Iterator[Conflict]:
    names = ("jwt_secret", "jwt_algorithms")
    algorithms = algorithms_of(settings)
    if settings.jwt_secret is None:
        if symmetric := [name for name in algorithms if name in SECRET_ALGORITHMS]:
            text = (
                f"jwt_algorithms: {symmetric[0]} needs jwt_secret; with a public key, anyone who"
                " knows the key could sign tokens"
            )
            yield Conflict(text, names)
        return
    if asymmetric := [name for name in algorithms if name not in SECRET_ALGORITHMS]:
        text = f"jwt_algorithms: {asymmetric[0]} needs a public key and cannot use jwt_secret"
        yield Conflict(text, names)
        return
    longest = max(algorithms, key=lambda name: SECRET_ALGORITHMS[name])
    if len(settings.jwt_secret.encode()) < SECRET_ALGORITHMS[longest]:
        text = (
            f"jwt_secret: {longest} needs a secret of at least {SECRET_ALGORITHMS[longest]} bytes"
        )
        yield Conflict(text, names)


def _introspection_conflicts(settings: Settings) -> Iterator[Conflict]:
    needed = ("introspection_url", "introspection_client_id", "introspection_client_secret")
    missing = [name for name in needed if getattr(settings, name) is None]
    some = len(missing) < len(needed) or settings.introspection_audience is not None
    if some and missing:
        yield Conflict(f"introspection also needs {' and '.join(missing)}", needed)
