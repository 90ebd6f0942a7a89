"""The first bytes of a link: who calls whom, and how both prove it. No I/O.

The node that dials sends a preface in the clear, so that a process which accepts for several nodes
can hand the connection to the right one. What follows depends on the link.

With TLS: a handshake in which both show a certificate, of which each compares every byte with what
the database has of the other. Then the accepting node says `WELCOME`, since in TLS 1.3 the dialling
node is done before the other has seen its certificate.

Without TLS, and on Unix sockets:

    dialler    preface, nonce
    acceptor   nonce
    dialler    signature
    acceptor   signature

Each signs the preface, both nonces, and its own role in this. So a signature is good for this
connection alone, and cannot be sent back to the one who made it. The acceptor is the last to sign:
who proves nothing gets nothing but a random number.

There is nothing to negotiate: both sides have to be set to the same, so nobody in between can talk
them out of TLS. Without it, somebody in between could still take over a connection that was proven.
"""

from __future__ import annotations

import re
from typing import Literal

from attrs import frozen

LINK_VERSION = 1
MAX_PREFACE_BYTES = 256
NONCE_BYTES = 32
WELCOME = b"welcome\n"

Role = Literal["dialler", "acceptor"]
"""What a node is in a handshake."""

_NODE_ID = r"[0-9A-Za-z_.-]{1,64}"
_PREFACE = re.compile(
    rf"relay-node {LINK_VERSION} (?P<target>{_NODE_ID}) (?P<dialler>{_NODE_ID})\n".encode()
)


class LinkRefused(Exception):
    """A connection is not accepted as a link, for the reason that the message says."""


@frozen
class Preface:
    """Which node calls which one, as the caller says."""

    target: str
    dialler: str

    def encode(self) -> bytes:
        return f"relay-node {LINK_VERSION} {self.target} {self.dialler}\n".encode()

    @property
    def is_sound(self) -> bool:
        """Whether both ids are such as nodes choose: one that was written into the database by
        others could be any text."""
        return _PREFACE.fullmatch(self.encode()) is not None

    @classmethod
    def parse(cls, line: bytes) -> Preface:
        """Read a whole preface, with its line end; raises `LinkRefused`."""
        found = _PREFACE.fullmatch(line)
        if found is None:
            raise LinkRefused("it does not begin like a link")
        return cls(found["target"].decode(), found["dialler"].decode())


def transcript(role: Role, preface: Preface, dialler_nonce: bytes, acceptor_nonce: bytes) -> bytes:
    """What a node signs to prove itself in its role."""
    return b"".join(
        (b"proof of the ", role.encode(), b": ", preface.encode(), dialler_nonce, acceptor_nonce)
    )
