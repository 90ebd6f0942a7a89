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
    source: Literal["session", "jwt", "introspection"] = "session"
    """Who said so; only a session has a row that can be read again."""

    def owns(self, owner_id: str) -> bool:
        return self.user_id == owner_id

    def may_consume(self, stream_id: str, owner_id: str) -> bool:  # noqa: ARG002
        return self.user_id == owner_id

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

    def may_consume(self, stream_id: str, owner_id: str) -> bool:  # noqa: ARG002
        return self.covers(stream_id)

    def covers(self, stream_id: str) -> bool:
        return ANY_STREAM in self.consume or stream_id in self.consume

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
    as_owner: str | None = None
    """A user id: store it only if this user owns the stream."""


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
