"""The identity of a peer: a user or a service."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import Literal

from attrs import field, frozen

from relay.model.access.link import PictureLink

ANY_STREAM = "*"
"""In place of a stream id: all streams."""
NO_STREAMS: frozenset[str] = frozenset()
"""One for all, since each empty set takes 216 bytes."""
_PREFIX = re.compile(r"([A-Za-z0-9._:-]+)\*")
SERVICE_TOKEN_PREFIX = "relay_service_"  # noqa: S105 - how each token begins


def prefixes_of(streams: Collection[str]) -> tuple[str, ...]:
    """The prefixes among grants or scopes, such as `tenant-a:` for `tenant-a:*`."""
    if not streams:
        return ()
    return tuple(sorted(found[1] for found in map(_PREFIX.fullmatch, streams) if found))


@frozen
class User:
    """A person with a Better Auth session, or with a token of an issuer."""

    user_id: str
    session_id: str
    expires_at: datetime
    """Aware, in UTC."""
    granted: frozenset[str] = NO_STREAMS
    """The ids of other users' streams that the user may watch, prefixes of ids with a `*` behind,
    or `ANY_STREAM`."""
    source: Literal["session", "application", "jwt", "introspection", "link"] = "session"
    """What the identity comes from; only a session has a row that can be read again."""
    remaining: float | None = field(default=None, eq=False)
    """Seconds until `expires_at` when it was read, by the clock of the database; None: use our own
    clock."""
    token: str | None = field(default=None, eq=False, repr=False)
    """The session token, where the application has to be asked again with it."""
    token_hash: str = field(default="", eq=False, repr=False)
    """The SHA-256 of the session token in hexadecimal, by which a revocation may name it."""
    link: PictureLink | None = field(default=None, eq=False, repr=False)
    """The link that somebody came with, who is not the user then but may see what that may of one
    stream."""
    prefixes: tuple[str, ...] = field(init=False, eq=False, repr=False)
    """Those in `granted`."""

    @prefixes.default
    def _(self) -> tuple[str, ...]:
        return prefixes_of(self.granted)

    @property
    def sender(self) -> str:
        """The sender of an alert, as it is stored."""
        return f"user:{self.user_id}"


@frozen
class Service:
    """A program with a service token and the scopes that it was given."""

    name: str
    consume: frozenset[str]
    """Stream ids, prefixes of ids with a `*` behind, or `ANY_STREAM`."""
    alerts: bool
    operate: bool
    token_hash: bytes = field(default=b"", eq=False, repr=False)
    """The hash of its token, by which it is read again."""
    revoke: bool = False
    produce: frozenset[str] = NO_STREAMS
    """Stream ids, prefixes of ids with a `*` behind, or `ANY_STREAM`."""
    user_id: str | None = None
    """The user in whose name it produces: the owner of its streams. None if it produces nothing."""
    user_is_stored: bool = False
    """Whether that user was in Better Auth's table when the token was made."""
    prefixes: tuple[str, ...] = field(init=False, eq=False, repr=False)
    """Those in `consume`."""

    @prefixes.default
    def _(self) -> tuple[str, ...]:
        return prefixes_of(self.consume)

    @property
    def sender(self) -> str:
        return f"service:{self.name}"

    def produces(self, stream_id: str) -> bool:
        """Whether its scope covers this stream."""
        if self.user_id is None:
            return False
        named = ANY_STREAM in self.produce or stream_id in self.produce
        return named or stream_id.startswith(prefixes_of(self.produce))


Identity = User | Service
