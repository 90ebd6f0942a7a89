"""The digest that stands for a token where the token itself must not be kept."""

from __future__ import annotations

import hashlib


def token_digest(token: str) -> bytes:
    """A digest that stands for the token in caches, session ids and revocations."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
