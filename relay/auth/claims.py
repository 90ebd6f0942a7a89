"""From what an issuer says of a token to a user. Floor 2."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Literal

from relay.model import User
from relay.postgres.text import is_storable

LONGEST_ID = 255
"""Characters: OpenID Connect allows a subject no more."""

LATEST = datetime(9999, 12, 31, tzinfo=UTC)


def user_of(
    token: str,
    source: Literal["jwt", "introspection"],
    *,
    subject: Any,
    expires: float,
    ids: tuple[Any, ...],
) -> User | None:
    """The user of a token that its issuer vouches for; None when it names none, or has expired.

    `expires` is in seconds since the Unix epoch. The first of `ids` that can serve is the session.
    """
    expires_at = instant(expires)
    if not _is_id(subject) or expires_at <= datetime.now(UTC):
        return None
    # Never the token itself, whatever the issuer thinks of as its id.
    named = (each for each in ids if _is_id(each) and each != token)
    session_id = next(named, None) or f"{source}-{digest(token).hex()[:32]}"
    return User(str(subject), session_id, expires_at, source=source)


def digest(token: str) -> bytes:
    """What stands for a token where one is remembered."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def instant(seconds: float) -> datetime:
    """The time that so many seconds since the Unix epoch are, or the last that there is."""
    if seconds >= LATEST.timestamp():
        return LATEST
    return datetime.fromtimestamp(max(seconds, 0.0), UTC)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_ID and is_storable(value)
