"""What the settings about tokens must be, one by one and together. Floor 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from msgspec import Meta

from relay.errors import Clash, ConfigError

Secret = Annotated[str, Meta(min_length=1, title="SECRET", description="a secret, not empty")]
Text = Annotated[str, Meta(min_length=1, title="TEXT", description="a text, not empty")]
WebUrl = Annotated[
    str, Meta(title="URL", description="an address such as https://id.example.org/path")
]
Moment = Annotated[
    float, Meta(ge=0, le=300, title="SECONDS", description="seconds, 0 (not at all) to 300")
]
AlgorithmNames = Annotated[
    str, Meta(title="NAMES", description="names of algorithms, such as RS256,ES256")
]

SECRET_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""And how many bytes their secret has at the least: RFC 7518, section 3.2."""
KEY_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
USUAL_SECRET_ALGORITHMS = ("HS256",)
USUAL_KEY_ALGORITHMS = ("RS256", "ES256", "EdDSA")

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9A-Fa-f:.]+")


class TokenSettings(Protocol):
    """The settings that are checked together."""

    @property
    def jwt_jwks_url(self) -> str | None: ...
    @property
    def jwt_public_key(self) -> Path | None: ...
    @property
    def jwt_secret(self) -> str | None: ...
    @property
    def jwt_issuer(self) -> str | None: ...
    @property
    def jwt_audience(self) -> str | None: ...
    @property
    def jwt_algorithms(self) -> str | None: ...
    @property
    def introspection_url(self) -> str | None: ...
    @property
    def introspection_client_id(self) -> str | None: ...
    @property
    def introspection_client_secret(self) -> str | None: ...
    @property
    def introspection_audience(self) -> str | None: ...


def check_web_url(_settings: object, attribute: object, url: str | None) -> None:
    """Tokens and keys travel over TLS, or do not leave the machine."""
    if url is None:
        return
    name = getattr(attribute, "name", "")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ConfigError(f"{name}: expected an address such as https://id.example.org/path")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{name}: an address with a name or a password in it ends up in logs")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(f"{name}: expected https://; http:// is for this machine alone")


def check_algorithms(_settings: object, _attribute: object, names: str | None) -> None:
    if names is None:
        return
    known = (*SECRET_ALGORITHMS, *KEY_ALGORITHMS)
    if unknown := [name for name in split_names(names) if name not in known]:
        raise ConfigError(f"jwt_algorithms: {unknown[0]!r} is none of {', '.join(known)}")
    if not split_names(names):
        raise ConfigError("jwt_algorithms: expected names of algorithms, such as RS256,ES256")


def token_clashes(settings: TokenSettings) -> Iterator[Clash]:
    """Settings about tokens that do not go together."""
    yield from _jwt_clashes(settings)
    yield from _introspection_clashes(settings)


def algorithms_of(settings: TokenSettings) -> tuple[str, ...]:
    """The algorithms that a JWT may be signed with."""
    if settings.jwt_algorithms is not None:
        return split_names(settings.jwt_algorithms)
    return USUAL_KEY_ALGORITHMS if settings.jwt_secret is None else USUAL_SECRET_ALGORITHMS


def split_names(names: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\s,]+", names))


def _jwt_clashes(settings: TokenSettings) -> Iterator[Clash]:
    sources = ("jwt_jwks_url", "jwt_public_key", "jwt_secret")
    given = [name for name in sources if getattr(settings, name) is not None]
    if not given:
        for name in ("jwt_issuer", "jwt_audience", "jwt_algorithms"):
            if getattr(settings, name) is not None:
                text = f"{name} needs a key for JWTs: set one of {', '.join(sources)}"
                yield Clash(text, (name, *sources))
        return
    if len(given) > 1:
        text = f"there can be one key for JWTs: set only one of {', '.join(given)}"
        yield Clash(text, tuple(given))
        return
    for name in ("jwt_issuer", "jwt_audience"):
        if getattr(settings, name) is None:
            text = f"{given[0]} needs {name}: a JWT made for others must not do here"
            yield Clash(text, (given[0], name))
    yield from _key_clashes(settings)


def _key_clashes(settings: TokenSettings) -> Iterator[Clash]:
    names = ("jwt_secret", "jwt_algorithms")
    algorithms = algorithms_of(settings)
    if settings.jwt_secret is None:
        if symmetric := [name for name in algorithms if name in SECRET_ALGORITHMS]:
            text = (
                f"jwt_algorithms: {symmetric[0]} is for jwt_secret: with it, whoever reads the"
                " public key could sign"
            )
            yield Clash(text, names)
        return
    if asymmetric := [name for name in algorithms if name not in SECRET_ALGORITHMS]:
        yield Clash(f"jwt_algorithms: {asymmetric[0]} is for a public key, not jwt_secret", names)
        return
    longest = max(algorithms, key=lambda name: SECRET_ALGORITHMS[name])
    if len(settings.jwt_secret.encode()) < SECRET_ALGORITHMS[longest]:
        text = f"jwt_secret: {longest} needs one of {SECRET_ALGORITHMS[longest]} bytes or more"
        yield Clash(text, names)


def _introspection_clashes(settings: TokenSettings) -> Iterator[Clash]:
    needed = ("introspection_url", "introspection_client_id", "introspection_client_secret")
    missing = [name for name in needed if getattr(settings, name) is None]
    some = len(missing) < len(needed) or settings.introspection_audience is not None
    if some and missing:
        yield Clash(f"introspection needs {' and '.join(missing)} as well", needed)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
