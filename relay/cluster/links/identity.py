"""Who a node is: its id, and a key with which it proves that, made anew at each start.

The certificate is in the node's row of the database, for all to see. The private key stays in the
memory of the process.
"""

from __future__ import annotations

import secrets

from attrs import frozen
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from relay.transport.pinned_key import (
    BadCertificate,
    PinnedKey,
    make_pinned_key,
    read_certificate,
)

SIGNATURE_BYTES = 64
NODE_ID_BYTES = 8
"""Random bytes of a node id, which is in hexadecimal: nobody guesses one."""


@frozen(kw_only=True)
class NodeIdentity(PinnedKey):
    """What this process is to other nodes, with its private key."""

    node_id: str
    machine: str
    """The same for all nodes of one parent process."""


def make_identity(machine: str) -> NodeIdentity:
    """Choose an id and make a key, for a node that starts on this machine."""
    node_id = secrets.token_hex(NODE_ID_BYTES)
    made = make_pinned_key(f"relay node {node_id}")
    return NodeIdentity(made.certificate_pem, made._key, node_id=node_id, machine=machine)


def has_signed(certificate_pem: str, signature: bytes, data: bytes) -> bool:
    """Whether the node with this certificate has signed the data."""
    try:
        key = read_certificate(certificate_pem).public_key()
        if not isinstance(key, Ed25519PublicKey):
            return False
        key.verify(signature, data)
    except (BadCertificate, InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
