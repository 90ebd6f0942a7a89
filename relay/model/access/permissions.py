"""Who may do what: every permission of the relay is decided here.

The table in docs/security.md says the same in words, and a test checks all of it. The owner of a
stream is None until its id is registered.
"""

from __future__ import annotations

from attrs import frozen

from relay.model.access.identity import (
    ANY_STREAM,
    Identity,
    Service,
    User,
)


@frozen
class VisibleStreams:
    """The streams that an identity may watch, in a form that a query can be made of."""

    everything: bool
    owner_id: str | None
    """The user all of whose streams are visible."""
    stream_ids: frozenset[str]
    prefixes: tuple[str, ...]
    """All streams whose ids begin with one of them are visible."""

    @property
    def prefix_ends(self) -> list[str]:
        """For each prefix the first text behind all that begin with it, bytewise."""
        return [each[:-1] + chr(ord(each[-1]) + 1) for each in self.prefixes]

    def covers(self, stream_id: str, owner_id: str) -> bool:
        return (
            self.everything
            or owner_id == self.owner_id
            or stream_id in self.stream_ids
            or stream_id.startswith(self.prefixes)
        )


def visible_streams(identity: Identity) -> VisibleStreams:
    """The streams that an identity may watch: own and granted ones, or the scope of a service."""
    owner_id: str | None
    if isinstance(identity, User):
        owner_id, named = identity.user_id, identity.granted
    else:
        owner_id, named = None, identity.consume
    return VisibleStreams(ANY_STREAM in named, owner_id, named, identity.prefixes)


def may_watch(identity: Identity, stream_id: str, owner_id: str | None) -> bool:
    """Whether it may get frames, alerts and statuses of a stream, live and stored, and see that it
    exists. A stream without an owner cannot be watched."""
    return owner_id is not None and visible_streams(identity).covers(stream_id, owner_id)


def may_register(identity: Identity, stream_id: str, owner_id: str | None) -> bool:
    """Whether it may produce a stream: only its owner may, the first user that registers its id,
    and services with the scope `produce` in the name of that user."""
    if isinstance(identity, Service) and not identity.produces(stream_id):
        return False
    return identity.user_id is not None and owner_id in {None, identity.user_id}


def may_alert(identity: Identity, stream_id: str, owner_id: str | None) -> bool:
    """Whether it may send alerts for a stream: its owner may, and services with the scope `alerts`
    where they may watch."""
    if isinstance(identity, Service):
        return identity.alerts and may_watch(identity, stream_id, owner_id)
    return owner_id is not None and owner_id == identity.user_id


def may_revoke(identity: Identity) -> bool:
    """Whether it may tell of sessions that have ended."""
    return isinstance(identity, Service) and identity.revoke


def may_operate(identity: Identity) -> bool:
    """Whether it may read the figures of all streams and connections."""
    return isinstance(identity, Service) and identity.operate
