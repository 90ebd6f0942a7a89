"""Encrypts messages for browsers: RFC 8291, on the content coding `aes128gcm` of RFC 8188. No I/O.

Only the browser that has subscribed can read a message; its push service cannot. The whole of it is
three calls of `cryptography`, less than what a library for it would bring, and is checked with the
example of the RFC.
"""

from __future__ import annotations

import secrets

from attrs import field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.alerts.targets.web_push.coding import (
    AUTH_SECRET_BYTES,
    LAST_RECORD,
    MAX_PLAINTEXT_BYTES,
    PUBLIC_KEY_BYTES,
    RECORD_SIZE,
    SALT_BYTES,
    from_base64url,
)


class BadSubscriptionKeys(Exception):
    """Keys to which nothing can be encrypted. The text says why, and shows none of them."""


@frozen
class SubscriptionKeys:
    """What a browser has given to encrypt for it."""

    public_point: bytes = field(repr=False)
    """Its public key, uncompressed."""
    auth_secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, p256dh: str, auth: str) -> SubscriptionKeys:
        """The keys as `PushSubscription.toJSON()` gives them; `BadSubscriptionKeys`."""
        keys = cls(_decoded(p256dh, "p256dh"), _decoded(auth, "auth"))
        if len(keys.auth_secret) != AUTH_SECRET_BYTES:
            raise BadSubscriptionKeys(f"auth has to be {AUTH_SECRET_BYTES} bytes")
        keys.public_key()
        return keys

    def public_key(self) -> EllipticCurvePublicKey:
        """`BadSubscriptionKeys` if it is no point of the curve: an exchange with another would tell
        about our private key."""
        if len(self.public_point) != PUBLIC_KEY_BYTES or self.public_point[0] != 4:
            raise BadSubscriptionKeys(f"p256dh has to be {PUBLIC_KEY_BYTES} bytes, uncompressed")
        try:
            return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), self.public_point)
        except ValueError:
            raise BadSubscriptionKeys("p256dh is not a point of the curve P-256") from None


def encrypt(
    plaintext: bytes,
    keys: SubscriptionKeys,
    *,
    sender_key: EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """The body of a request to a push service. The key of the sender and the salt are used for one
    message alone, and made here unless a test names them.

    `ValueError` for more than `MAX_PLAINTEXT_BYTES`, `BadSubscriptionKeys`.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise ValueError(f"a message has at most {MAX_PLAINTEXT_BYTES} bytes")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    sender_key = generate_private_key(SECP256R1()) if sender_key is None else sender_key
    sender_point = encoded_point(sender_key.public_key())
    shared = sender_key.exchange(ECDH(), keys.public_key())
    secret = _derive(
        keys.auth_secret, shared, b"WebPush: info\0" + keys.public_point + sender_point, 32
    )
    content_key = _derive(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _derive(salt, secret, b"Content-Encoding: nonce\0", 12)
    sealed = AESGCM(content_key).encrypt(nonce, plaintext + LAST_RECORD, None)
    header = salt + RECORD_SIZE.to_bytes(4, "big") + bytes([len(sender_point)]) + sender_point
    return header + sealed


def encoded_point(key: EllipticCurvePublicKey) -> bytes:
    """A public key, uncompressed."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _decoded(text: str, name: str) -> bytes:
    try:
        return from_base64url(text)
    except ValueError:
        raise BadSubscriptionKeys(f"{name} is not base64url") from None


def _derive(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)
