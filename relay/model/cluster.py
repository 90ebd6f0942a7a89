"""Nodes of a cluster, and the streams that are live on them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from attrs import frozen

from relay.protocol.messages import StreamStatus

NODE_TIMEOUT = 15.0
"""Seconds without a sign of life after which a node is dead."""

ClaimOutcome = Literal[
    "new", "kept", "moved", "superseded", "taken", "too_many", "rejected", "forbidden"
]
"""What became of a claim. `new`: the stream was not live. `kept`: this node had it already.
`moved`: another node had it. The others are refusals: a connection that was accepted later produces
the stream, another user owns it, the user has too many live streams, the database cannot store the
id or the metadata, or its role may not write who owns the stream."""


@frozen
class Node:
    """A relay process that serves clients together with others on the same database."""

    node_id: str
    """Chosen at random at each start."""
    machine: str
    """The same for all nodes of one parent process."""
    address: str | None
    """`HOST:PORT` for nodes of other machines; None: they cannot reach it."""
    socket: str | None
    """The path of a Unix socket for nodes of the same machine."""
    certificate: str
    """In PEM; self-signed, made at the start."""
    version: str
    draining: bool = False
    """Whether it is about to leave, and takes no new streams."""


@frozen
class SeenNode:
    """A node as the database knows it."""

    node: Node
    seconds_ago: float
    """Since its last sign of life, by the database's clock."""
    streams: int
    """Streams that are produced there."""

    @property
    def state(self) -> Literal["live", "draining", "silent"]:
        """Whether it serves clients, as far as the database can say."""
        if self.seconds_ago >= NODE_TIMEOUT:
            return "silent"
        return "draining" if self.node.draining else "live"


@frozen
class LiveStream:
    """A stream that a node of the cluster has."""

    stream_id: str
    owner_id: str
    node_id: str
    term: int
    """Grows with each change of the node, also where the row was gone meanwhile: of two that think
    they have a stream, the one with the larger term is right."""
    epoch: int
    status: StreamStatus
    """Never `offline`."""
    metadata: dict[str, Any] | None = None

    @property
    def metadata_bytes(self) -> int:
        """Its size as JSON."""
        return 0 if self.metadata is None else len(msgspec.json.encode(self.metadata))


@frozen
class ClaimRequest:
    """A connection asks to produce a stream."""

    stream_id: str
    user_id: str
    by_session: bool
    """Whether the user came with a session of Better Auth."""
    connection: int
    """Its number on this node, which grows with each one accepted."""
    accepted_at: float
    """When it was accepted, by `time.monotonic`."""
    metadata: dict[str, Any] | None = None
    most: int | None = None
    """Live streams that the user may have, this one among them; None: any number."""
    replaced: str | None = None
    """A stream that the connection gives up for this one, which does not count."""


@frozen
class StreamClaim:
    """The answer to a `ClaimRequest`."""

    stream_id: str
    outcome: ClaimOutcome
    owner_id: str
    """Empty where it is not known: `rejected` and `forbidden`."""
    term: int = 0
    """0 in a refusal, as `epoch`."""
    epoch: int = 0
    before: str | None = None
    """The node that had the stream, where it `moved`."""


@frozen
class HeldStream:
    """A live stream as its own node knows it, to be written again where the row is lost."""

    stream: LiveStream
    connection: int
    accepted_at: float
    """As in `ClaimRequest`."""


@frozen
class NodeBeat:
    """The answer to a sign of life of a node."""

    nodes: list[Node]
    """Those that live, this one among them, by their ids."""
    is_new: bool
    """Whether this one was not known: at its first sign of life, or since the tables were emptied
    or it was thought dead; its streams have to be restored."""


@frozen
class StreamNews:
    """What may have changed in the cluster; a hint to look, which anybody may have forged."""

    stream_ids: frozenset[str] = frozenset()
    everything: bool = False
    """Whether any stream may have changed."""
    nodes: bool = False
    """Whether a node has come, gone, or changed what it says of itself."""
