"""Changes of sessions, users, services and owners that concern live connections."""

from __future__ import annotations

from typing import Literal, NamedTuple

ChangeKind = Literal[
    "session", "user", "token", "service", "link", "stream", "operator", "everything"
]


class Change(NamedTuple):
    """A change of a session, of a user or the grants to one, of a service, of a link, of the
    owner of a stream, or what an operator asks of all relays.

    A tuple, whose hash takes no Python: each connection is found by two or three of them.
    """

    kind: ChangeKind
    id: str = ""
    """For a service, its name; for a session token, its SHA-256 in hexadecimal."""


EVERYTHING = Change("everything")
"""Anything may have changed."""
