"""Tells push services who sends: VAPID (RFC 8292). No I/O.

A browser subscribes for one key, and its push service takes messages that are signed with that key
alone. So all nodes of a relay have to use the same one, for good.
"""

from __future__ import annotations

import json
import time
from urllib.parse import urlsplit

from attrs import define, field
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from relay.alerts.targets.web_push.coding import base64url, from_base64url
from relay.alerts.targets.web_push.encryption import encoded_point
from relay.errors import ConfigError
from relay.model.targets.push_service import PUSH_PORTS

PRIVATE_KEY_BYTES = 32
TOKEN_SECONDS = 12 * 3600
"""For which a token is valid, and twice as long as it is used; 24 h are the most (RFC 8292, section
2)."""
MAX_VAPID_TOKENS = 1000
"""That are kept, one for each push service: users name hosts below those of the settings."""
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@define(eq=False)
class VapidKey:
    """The key that relay signs with."""

    _key: EllipticCurvePrivateKey = field(repr=False)
    public: str
    """What browsers subscribe for (`applicationServerKey`), as base64url."""
    _tokens: dict[str, tuple[str, float]] = field(factory=dict, repr=False)
    """By origin: a token, and until when it is used, by this machine's clock."""

    @classmethod
    def parse(cls, private: str) -> VapidKey:
        """The key with this private part, 32 bytes as base64url, which is how tools for VAPID write
        it; `ConfigError`, which shows none of it."""
        try:
            number = int.from_bytes(from_base64url(private), "big")
            is_key = len(from_base64url(private)) == PRIVATE_KEY_BYTES and 0 < number < P256_ORDER
        except ValueError:
            is_key = False
        if not is_key:
            raise ConfigError(
                f"the VAPID key has to be a private key of P-256: {PRIVATE_KEY_BYTES} bytes as"
                " base64url"
            )
        key = derive_private_key(number, SECP256R1())
        return cls(key, base64url(encoded_point(key.public_key())))

    def authorization(self, url: str, subject: str | None) -> str:
        """The header for a request to this URL; `subject` is where the operator can be reached."""
        origin, now = _origin_of(url), time.time()
        token, until = self._tokens.get(origin, ("", 0.0))
        if not now < until <= now + TOKEN_SECONDS / 2:  # or the clock was set back
            token = self._sign(origin, round(now) + TOKEN_SECONDS, subject)
            while len(self._tokens) >= MAX_VAPID_TOKENS:
                del self._tokens[next(iter(self._tokens))]
            self._tokens[origin] = token, now + TOKEN_SECONDS / 2
        return f"vapid t={token}, k={self.public}"

    def _sign(self, origin: str, expires: int, subject: str | None) -> str:
        claims: dict[str, object] = {"aud": origin, "exp": expires}
        if subject is not None:
            claims["sub"] = subject
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'ES256'})}.{_encoded(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ECDSA(SHA256())))
        return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _origin_of(url: str) -> str:
    """As RFC 6454 writes it: in lower case, and without a port that goes without saying."""
    parts = urlsplit(url)
    host = parts.netloc.lower().removesuffix(f":{PUSH_PORTS.get(parts.scheme)}")
    return f"{parts.scheme}://{host}"


def new_private_key() -> str:
    """A new one, as base64url."""
    number = generate_private_key(SECP256R1()).private_numbers().private_value
    return base64url(number.to_bytes(PRIVATE_KEY_BYTES, "big"))


def _encoded(content: object) -> str:
    return base64url(json.dumps(content, separators=(",", ":")).encode())
