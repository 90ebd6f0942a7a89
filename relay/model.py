"""Values that several rooms share: who is speaking, and what an alert is. Floor 0."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from attrs import field, frozen

ANY_STREAM = "*"


@frozen
class User:
    """A person, known by a Better Auth session or by the word of an issuer."""

    user_id: str
    session_id: str
    expires_at: datetime
    """Aware, in UTC."""
    granted: frozenset[str] = frozenset()
    """The streams of others that the user may watch, by id, or `ANY_STREAM`."""
    source: Literal["session", "jwt", "introspection"] = "session"
    """What vouches for the user: whether there is a row of a session to read again."""
    remaining: float | None = field(default=None, eq=False)
    """Seconds that were left at the moment of reading, by the clock of whoever knows `expires_at`;
    None to go by our own clock."""

    @property
    def sender(self) -> str:
        """Who an alert is from, as it is stored."""
        return f"user:{self.user_id}"


@frozen
class Service:
    """A program with a service token and the scopes that it was given."""

    name: str
    consume: frozenset[str]
    """Stream ids, or `ANY_STREAM`."""
    alerts: bool
    operate: bool
    token_hash: bytes = field(default=b"", eq=False, repr=False)
    """Which token it came with, as the store knows it."""

    @property
    def sender(self) -> str:
        return f"service:{self.name}"


Identity = User | Service


@frozen
class NewAlert:
    """An alert that is not stored yet."""

    stream_id: str
    sender: str
    severity: str
    message: str
    timestamp: int
    """The sender's clock, ms since the Unix epoch."""
    metadata: Mapping[str, Any] | None = None
    alert_key: str | None = None
    by: Identity | None = None
    """Store it only if the policy lets them send alerts for the stream."""


@frozen
class StoredAlert:
    """An alert as committed; `alert_id` grows in the order of commits."""

    alert_id: int
    stream_id: str
    owner_id: str
    sender: str
    severity: str
    message: str
    timestamp: int
    metadata: Mapping[str, Any] | None = None
    fresh: bool = field(default=True, eq=False)
    """False when this is an earlier alert with the same `alert_key`."""
    odd: tuple[str, ...] = field(default=(), eq=False)
    """What of the row was none of an alert's, and is something else here."""


def milliseconds(moment: datetime) -> int:
    """Since the Unix epoch, as messages have it."""
    return int(moment.timestamp() * 1000)
