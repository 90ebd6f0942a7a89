"""Who may do what: every permission of the relay is decided here. Floor 0.

The table in docs/security.md says the same in words, and a test walks all of it. Whoever asks names
the stream and its owner, who is None while nobody has registered the id.
"""

from __future__ import annotations

from attrs import frozen

from relay.model import ANY_STREAM, Identity, Service, User


@frozen
class View:
    """The streams that somebody may watch, in a form that a query can be made of."""

    everything: bool
    owner_id: str | None
    """Whose streams are all in it."""
    stream_ids: frozenset[str]

    def covers(self, stream_id: str, owner_id: str) -> bool:
        return self.everything or owner_id == self.owner_id or stream_id in self.stream_ids


def view_of(identity: Identity) -> View:
    """What somebody may watch: a user the own streams and those granted, a service its scope."""
    if isinstance(identity, User):
        return View(ANY_STREAM in identity.granted, identity.user_id, identity.granted)
    return View(ANY_STREAM in identity.consume, None, identity.consume)


def may_watch(identity: Identity, stream_id: str, owner_id: str | None) -> bool:
    """Get frames, alerts and statuses of a stream, live and from the history, and see that it is
    there. Of a stream that nobody owns there is nothing to see."""
    return owner_id is not None and view_of(identity).covers(stream_id, owner_id)


def may_register(identity: Identity, owner_id: str | None) -> bool:
    """Produce a stream: its owner, who is the first user that registers the id."""
    return isinstance(identity, User) and owner_id in {None, identity.user_id}


def may_alert(identity: Identity, stream_id: str, owner_id: str | None) -> bool:
    """Send alerts for a stream: its owner, and services that may raise alerts where they watch."""
    if isinstance(identity, Service):
        return identity.alerts and may_watch(identity, stream_id, owner_id)
    return owner_id is not None and owner_id == identity.user_id


def may_operate(identity: Identity) -> bool:
    """Read the figures of every stream and connection."""
    return isinstance(identity, Service) and identity.operate
