"""Keys that verify JSON Web Tokens.

The key decides which algorithms it may be used with, never the token: a public key is not accepted
as an HMAC secret, nor a key made for one algorithm for another.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError, SecurityWarning, UnsupportedAlgorithmError
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from relay.errors import ConfigError

PUBLIC_KEY_TYPES = (RSAKey, ECKey, OKPKey)

# What the libraries raise for an invalid key. They warn about RSA keys under 2048 bits.
KEY_ERRORS = (
    JoseError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    UnsupportedAlgorithm,
    SecurityWarning,
)


class PinnedAlgorithms(JWSRegistry):
    """Allows these algorithms only. Unknown header fields are ignored."""

    def __init__(self, *algorithms: str) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """Omit the warning that EdDSA is deprecated: issuers still write it."""
        if name not in (self.allowed or ()) or name not in self.algorithms:
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


class KeySource(Protocol):
    """Finds the key that verifies a token."""

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key; None if there is none, `StoreUnavailable` if that cannot be told now."""


@define(eq=False)
class StaticKey:
    """The key from the settings, used whatever key id a token names."""

    _key: Key = field(repr=False)

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:  # noqa: ARG002 (there is one key)
        return self._key if fits(self._key, algorithm) else None


def fits(key: Key, algorithm: str) -> bool:
    """Whether the key's type, curve and declared algorithm fit the algorithm."""
    try:
        PinnedAlgorithms(algorithm).get_alg(algorithm).check_key(key)
    except JoseError:
        return False
    return True


def secret_key(secret: str) -> StaticKey:
    """The key for HS256, HS384 and HS512. `ConfigError` if it is a public key or unusable."""
    try:
        with warnings.catch_warnings(action="error", category=SecurityWarning):
            return StaticKey(OctKey.import_key(secret.encode()))
    except KEY_ERRORS:
        raise ConfigError(
            "jwt_secret is a public key, not a secret: set jwt_public_key instead"
        ) from None


def read_public_key(path: Path, algorithms: Iterable[str]) -> StaticKey:
    """The key in a PEM file. `ConfigError` unless it fits one of the algorithms."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read jwt_public_key {path}: {error.strerror}") from None
    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"jwt_public_key {path} is a private key, which relay should not have")
    for kind in PUBLIC_KEY_TYPES:
        key = _import(kind, pem)
        if key is not None:
            if any(fits(key, algorithm) for algorithm in algorithms):
                return StaticKey(key)
            raise ConfigError(
                f"jwt_public_key {path} is a {key.key_type} key, which fits none of"
                f" jwt_algorithms: {', '.join(algorithms)}"
            )
    raise ConfigError(
        f"jwt_public_key {path}: expected a public key in PEM, RSA of 2048 bits or more,"
        " EC or Ed25519"
    )


def import_public(jwk: Any) -> Key | None:
    """A key of a JWK set; None if it is not a public key, or too weak."""
    named = jwk.get("kty") if isinstance(jwk, dict) else None
    kind = next((kind for kind in PUBLIC_KEY_TYPES if kind.key_type == named), None)
    return None if kind is None else _import(kind, jwk)


def _import(kind: type[RSAKey | ECKey | OKPKey], given: Any) -> Key | None:
    try:
        with warnings.catch_warnings(action="error", category=SecurityWarning):
            key: Key = kind.import_key(given)
            key.check_use("sig")
    except KEY_ERRORS:
        return None
    return key
