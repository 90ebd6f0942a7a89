"""Types and checks of the settings about tokens."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.settings.settings import Settings

Secret = Annotated[
    str, Meta(min_length=1, title="SECRET", description="a secret that is not empty")
]
Text = Annotated[str, Meta(min_length=1, title="TEXT", description="text that is not empty")]
WebUrl = Annotated[str, Meta(title="URL", description="a URL such as https://id.example.org/path")]
CacheSeconds = Annotated[
    float,
    Meta(ge=0, le=300, title="SECONDS", description="a number of seconds from 0 (off) to 300"),
]
TokenStorage = Literal["plain", "sha256-hex", "sha256-base64", "sha256-base64url"]
AlgorithmNames = Annotated[
    str, Meta(title="NAMES", description="names of algorithms such as RS256,ES256")
]

SECRET_ALGORITHMS = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Algorithms that use a secret, with its minimum length in bytes (RFC 7518, section 3.2)."""
KEY_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
DEFAULT_SECRET_ALGORITHMS = ("HS256",)
DEFAULT_KEY_ALGORITHMS = ("RS256", "ES256", "EdDSA")

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|[0-9A-Fa-f:.]+")


def check_web_url(_settings: object, attribute: object, url: str | None) -> None:
    """Accept an https:// URL, or an http:// URL of this machine.

    Raises `ConfigError` that never shows the URL, since it may hold a password.
    """
    if url is None:
        return
    name = getattr(attribute, "name", "")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not _HOST.fullmatch(host) or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ConfigError(f"{name}: expected a URL such as https://id.example.org/path")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{name}: leave out the user name and the password, because the URL ends up in logs"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(f"{name}: expected https://; http:// is allowed for this machine only")


def check_endpoint_url(settings: object, attribute: object, url: str | None) -> None:
    """Check a URL that relay adds parameters to; otherwise like `check_web_url`."""
    check_web_url(settings, attribute, url)
    if url is not None and ("?" in url or "#" in url):
        name = getattr(attribute, "name", "")
        raise ConfigError(f"{name}: expected a URL without ? and #; relay adds the parameters")


def check_public_url(_settings: object, attribute: object, url: str | None) -> None:
    """Check a URL that paths are put behind. It may be http://, for a network of one's own."""
    if url is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[A-Za-z0-9._~/-]*)?", url):
        name = getattr(attribute, "name", "")
        raise ConfigError(
            f"{name}: expected a URL such as https://relay.example.org, without ?, # and a password"
        )


def check_algorithms(_settings: object, _attribute: object, names: str | None) -> None:
    if names is None:
        return
    known = (*SECRET_ALGORITHMS, *KEY_ALGORITHMS)
    if unknown := [name for name in split_names(names) if name not in known]:
        raise ConfigError(f"jwt_algorithms: {unknown[0]!r} is not one of {', '.join(known)}")
    if not split_names(names):
        raise ConfigError("jwt_algorithms: expected names of algorithms such as RS256,ES256")


def algorithms_of(settings: Settings) -> tuple[str, ...]:
    """The signature algorithms that are accepted in JWTs."""
    if settings.jwt_algorithms is not None:
        return split_names(settings.jwt_algorithms)
    return DEFAULT_KEY_ALGORITHMS if settings.jwt_secret is None else DEFAULT_SECRET_ALGORITHMS


def split_names(names: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\s,]+", names))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
