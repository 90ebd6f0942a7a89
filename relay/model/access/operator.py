"""What operators do to streams, users and connections."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen


@frozen
class Operator:
    """An operator who asks over HTTP, for the audit."""

    service: str
    address: str


@frozen
class OwnedStream:
    """A stream, and whose it is."""

    stream_id: str
    owner_id: str | None
    """None: the next user that registers it becomes its owner."""
    since: datetime
    """When the present owner got it."""
    gone_since: datetime | None
    """When the user was deleted who owns it, as far as relay's trigger has seen it."""


@frozen
class EndRequest:
    """Asks every relay to end connections: those of a user, or one by its number, if it is of that
    user where one is named."""

    request_id: int
    user_id: str | None
    connection: int | None
    node: str | None = None
    """The one node that is asked; None: all relays."""


@frozen
class EndAnswer:
    """What relays have done about an `EndRequest`."""

    relays: int
    """How many have looked."""
    ended: int
    """Connections."""
