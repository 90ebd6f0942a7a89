"""base64url, and how much a message holds: what is needed before anything is encrypted."""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

PUBLIC_KEY_BYTES = 65
"""Of a point of P-256 that is not compressed."""
AUTH_SECRET_BYTES, SALT_BYTES = 16, 16
RECORD_SIZE = 4096
"""Bytes of a message with its header that each push service takes (RFC 8030, section 7.2)."""
LAST_RECORD = b"\x02"
MAX_PLAINTEXT_BYTES = RECORD_SIZE - (SALT_BYTES + 4 + 1 + PUBLIC_KEY_BYTES) - 16 - len(LAST_RECORD)
"""Of a message; the rest are the header, the tag of AES-GCM, and the delimiter."""


def base64url(data: bytes) -> str:
    """As RFC 7515 has it: without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Decode, with or without padding; `ValueError`."""
    bare = text.rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", bare):
        raise ValueError("not base64url")
    try:
        return urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        raise ValueError("not base64url") from None
