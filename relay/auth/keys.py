"""Keys that JSON Web Tokens are checked with. Floor 2.

The key decides which algorithms it can serve, never the token: a public key is no HMAC secret,
and a key made for one algorithm checks no other.
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

PUBLIC_KINDS = (RSAKey, ECKey, OKPKey)

# What the libraries raise for something that is no key, or warn of: RSA keys under 2048 bits.
NO_KEY = (
    JoseError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    UnsupportedAlgorithm,
    SecurityWarning,
)


class Pinned(JWSRegistry):
    """These algorithms and no other; headers may say more than we know."""

    def __init__(self, *algorithms: str) -> None:
        super().__init__(algorithms=algorithms, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        """Without the warning that EdDSA is an old name: it is what issuers write."""
        if name not in (self.allowed or ()) or name not in self.algorithms:
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


class Keys(Protocol):
    """Where the key for a token is found."""

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key; None when there is none for it, `StoreUnavailable` when that cannot be told."""


@define(eq=False)
class OneKey:
    """The one key of the settings, whatever key a token names."""

    _key: Key = field(repr=False)

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:  # noqa: ARG002 (one key)
        return self._key if fits(self._key, algorithm) else None


def fits(key: Key, algorithm: str) -> bool:
    """Whether the key is of the kind, on the curve, and made for the algorithm."""
    try:
        Pinned(algorithm).get_alg(algorithm).check_key(key)
    except JoseError:
        return False
    return True


def secret_key(secret: str) -> OneKey:
    """The key for HS256 and its kin. `ConfigError` for what must not be one."""
    try:
        with warnings.catch_warnings(action="error", category=SecurityWarning):
            return OneKey(OctKey.import_key(secret.encode()))
    except NO_KEY:
        raise ConfigError("jwt_secret is no secret: a public key goes to jwt_public_key") from None


def read_public_key(path: Path, algorithms: Iterable[str]) -> OneKey:
    """The key in a PEM file. `ConfigError` when there is none that serves one of the algorithms."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read jwt_public_key {path}: {error.strerror}") from None
    if b"PRIVATE KEY" in pem:
        raise ConfigError(f"jwt_public_key {path} is a private key, which relay should not have")
    for kind in PUBLIC_KINDS:
        key = _import(kind, pem)
        if key is not None:
            if any(fits(key, algorithm) for algorithm in algorithms):
                return OneKey(key)
            raise ConfigError(
                f"jwt_public_key {path} is a {key.key_type} key, which serves none of"
                f" jwt_algorithms: {', '.join(algorithms)}"
            )
    raise ConfigError(
        f"jwt_public_key {path}: expected a public key in PEM, RSA of 2048 bits or more,"
        " EC or Ed25519"
    )


def import_public(jwk: Any) -> Key | None:
    """One key of a JWK set; None for what is no public key, or too weak a one."""
    named = jwk.get("kty") if isinstance(jwk, dict) else None
    kind = next((kind for kind in PUBLIC_KINDS if kind.key_type == named), None)
    return None if kind is None else _import(kind, jwk)


def _import(kind: type[RSAKey | ECKey | OKPKey], given: Any) -> Key | None:
    try:
        with warnings.catch_warnings(action="error", category=SecurityWarning):
            key: Key = kind.import_key(given)
            key.check_use("sig")
    except NO_KEY:
        return None
    return key
