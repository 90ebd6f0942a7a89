"""How the session table stores tokens: as they are, or as SHA-256 hashes."""

from __future__ import annotations

import base64
import hashlib

from attrs import frozen

from relay.postgres.tables.sessions.better_auth import AuthColumn
from relay.settings.tokens import TokenStorage

BYTES = "bytea"


@frozen
class StoredTokens:
    """The forms of a token in the session table."""

    _storage: TokenStorage
    _column: AuthColumn

    def forms(self, token: str) -> tuple[str, ...]:
        """The texts that the column may have for a token, the usual one first."""
        if self._storage == "plain":
            return (token,)
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        if self._column.type == BYTES:
            return (f"\\x{digest.hex()}",)
        if self._storage == "sha256-hex":
            return digest.hex(), digest.hex().upper()
        encode = base64.b64encode if self._storage == "sha256-base64" else base64.urlsafe_b64encode
        padded = encode(digest).decode()
        if self._storage == "sha256-base64":
            return padded, padded.rstrip("=")
        return padded.rstrip("="), padded
