"""An issuer of JSON Web Tokens under the control of a test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from attrs import define, field
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

ISSUER, AUDIENCE = "https://id.example.org", "relay"

RSA = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"})
EC = ECKey.generate_key("P-256", {"kid": "ec", "alg": "ES256"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed", "alg": "EdDSA"})
ALGORITHM_OF: dict[str, str] = {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}


@define(eq=False)
class Issuer:
    """Signs."""

    key: Key = field(default=EC)

    def token(self, /, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token that is good but for what the test wants otherwise; None leaves a claim out."""
        kid = self.key.kid or ""
        head = {"alg": ALGORITHM_OF[kid], "kid": kid, **(header or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return by_hand(head, good_claims(**claims), key=self.key)


def good_claims(**others: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "iat": now,
        "exp": now + 600,
        **others,
    }
    return {name: value for name, value in claims.items() if value is not None}


def by_hand(
    header: Any,
    claims: Any,
    signature: bytes = b"",
    *,
    key: Key | None = None,
    secret: bytes = b"",
) -> str:
    """A token that no library would make; signed by its `alg` with a key, by HS256 with a secret.

    Bytes are taken as they are.
    """
    signed = ".".join(
        base64url(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    )
    if secret:
        signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    if key is not None:
        signature = JWSRegistry.algorithms[header["alg"]].sign(signed.encode(), key)
    return f"{signed}.{base64url(signature)}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def public(*keys: Key) -> dict[str, Any]:
    """A JWK set, as an issuer publishes it."""
    return {"keys": [key.as_dict(private=False) for key in keys]}
