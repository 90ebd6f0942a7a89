"""An event of the audit log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from attrs import evolve, field, fields, frozen

MAX_VALUE_LENGTH = 256
"""Characters of a value; longer ones are cut."""


def plain(text: str) -> str:
    """Make text fit for a column, a line of the log, and a terminal."""
    text = text[:MAX_VALUE_LENGTH]
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def plain_or_none(text: str | None) -> str | None:
    return None if text is None else plain(text)


@frozen(kw_only=True)
class AuditEvent:
    """What a client or a command did, or what relay did to a client. No value is a token."""

    event_id: UUID = field(factory=uuid4)
    at: datetime = field(factory=lambda: datetime.now(UTC))
    what: str = field(converter=plain)
    outcome: str = field(converter=plain)
    reason: str = field(default="", converter=plain)
    address: str = field(default="", converter=plain)
    user_id: str | None = field(default=None, converter=plain_or_none)
    service: str | None = field(default=None, converter=plain_or_none)
    """The name of a program with a service token."""
    session_id: str | None = field(default=None, converter=plain_or_none)
    stream_id: str | None = field(default=None, converter=plain_or_none)
    connection: int | None = None
    """Its number in the log of the relay."""
    node: str | None = field(default=None, converter=plain_or_none)
    """The node that numbered it, in a cluster."""

    @property
    def is_anonymous(self) -> bool:
        """Whether the client was not authenticated."""
        return self.user_id is None and self.service is None

    def in_ascii(self) -> AuditEvent:
        """The same event for a database that lacks some of its characters, which are escaped."""
        texts: dict[str, Any] = {
            name: value.encode("ascii", "backslashreplace").decode()
            for name in EVENT_FIELDS
            if isinstance(value := getattr(self, name), str)
        }
        return evolve(self, **texts)

    def details(self) -> dict[str, str | int]:
        """The outcome and all other values that are set, by name."""
        values = {name: getattr(self, name) for name in _DETAILS}
        return {name: value for name, value in values.items() if value not in {None, ""}}


EVENT_FIELDS = tuple(each.name for each in fields(AuditEvent))
"""The names of all values, in their order."""
_DETAILS = EVENT_FIELDS[EVENT_FIELDS.index("outcome") :]
