"""The user that an issuer's claims about a token describe."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from relay.model.access.identity import User
from relay.model.access.token_digest import token_digest
from relay.model.text import is_storable

MAX_ID_LENGTH = 255
"""Characters; the most that OpenID Connect allows for a subject."""

LATEST_EXPIRY = datetime(9999, 12, 31, tzinfo=UTC)


def user_of(
    token: str,
    source: Literal["jwt", "introspection"],
    *,
    subject: Any,
    expires: float,
    ids: tuple[Any, ...],
) -> User | None:
    """The user of a valid token; None if it names no user or has expired.

    `expires` is in seconds since the Unix epoch. The first usable one of `ids` becomes the session
    id.
    """
    expires_at = instant(expires)
    if not _is_id(subject) or expires_at <= datetime.now(UTC):
        return None
    # Never the token itself, even if the issuer gives it as its id.
    named = (each for each in ids if _is_id(each) and each != token)
    session_id = next(named, None) or f"{source}-{token_digest(token).hex()[:32]}"
    return User(str(subject), session_id, expires_at, source=source)


def instant(seconds: float) -> datetime:
    """A Unix time as a datetime, capped at `LATEST_EXPIRY`."""
    if seconds >= LATEST_EXPIRY.timestamp():
        return LATEST_EXPIRY
    return datetime.fromtimestamp(max(seconds, 0.0), UTC)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and is_storable(value)
