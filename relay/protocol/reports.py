"""The reports of a relay over HTTP, as it sends them and as `relay top` and `relay load` read them.

Readers do not trust them: decoding bounds numbers, texts and lists. A field with a default may be
missing, as in the answer of an older relay.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Label = Annotated[str, Meta(max_length=1000)]
Counts = Annotated[dict[Label, Count], Meta(max_length=1000)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class ReadyReport(msgspec.Struct, frozen=True):
    """`GET /ready`: whether clients can be let in, and why not."""

    ready: bool
    draining: bool
    database: Label
    services: Annotated[dict[Label, Label], Meta(max_length=1000)]
    """The state of each supervised task."""
    alerts: Label = "ok"
    """`stalled` while stored alerts cannot be read to be delivered."""


class StreamCounts(msgspec.Struct, frozen=True):
    """Live streams by status, and subscriptions to any stream."""

    online: Count = 0
    streaming: Count = 0
    consumers: Count = 0


class FrameCounts(msgspec.Struct, frozen=True):
    """The frames offered to consumers: accepted = written + dropped + waiting."""

    accepted: Count
    written: Count
    dropped: Counts
    """By reason; reasons that did not occur are left out."""
    waiting: Count


class StatsReport(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /stats`: totals since the start, and the present numbers of connections and streams."""

    connections: Count
    connections_accepted: Count
    authenticated: Count
    verifications: Count = 0
    verification_queries: Count = 0
    frames_accepted: Count
    alerts_stored: Count
    alerts_delivered: Count
    alerts_removed: Count = 0
    endings: Counts
    limits_hit: Counts = {}
    frame_age: Counts
    """Frames written at an age up to each bound and above the one before; bounds are seconds."""
    profile: Label = "default"
    unauthenticated: Count = 0
    streams: StreamCounts
    frames_to_consumers: FrameCounts


class LinkReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The link to a connection that answers pings, as it was last measured.

    Behind a proxy that answers pings itself it is the link to that proxy.
    """

    round_trip_seconds: Seconds | None = None
    """The usual one; None until it is measured."""
    bytes_per_second: Count | None = None
    """What the link carries; None while frames are too small, or the link too fast, to measure
    it."""
    bytes_under_way: Count | None = None
    """Bytes of frames that were sent and not yet answered; None while not all are counted."""
    calm: bool = False
    """Whether frames take next to no time on the link. Few of them are measured then."""


class ConsumerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One subscription, by the number of its connection."""

    connection: Count = 0
    party: Label | None = None
    """Whose it is: `user:ID` or `service:NAME`."""
    frames: Count = 0
    """Frames that were offered."""
    written: Count
    dropped: Counts
    waiting: Count
    layer: Label | None = None
    """The layer that it is to get; None in a stream without layers, or where nothing is chosen."""
    link: LinkReport | None = None
    """The link of its connection; None where it is not measured: the peer does not answer pings, or
    has no subscription to frames with policy `latest`."""


class EdgeReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Another node of the cluster that carries a stream from this one, for its viewers."""

    node: Label
    viewers: Count
    frames: Count
    """Frames that were offered: each once, however many viewers there are."""
    written: Count
    dropped: Counts
    waiting: Count
    link: LinkReport | None = None


class StreamReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One stream with its consumers, as one node has it."""

    stream_id: Label
    owner_id: Label | None = None
    """The user whose stream it is, if that is known here."""
    status: Label
    epoch: Count
    frames: Count
    """Frames from its producer in this epoch."""
    producer: Count | None
    """The number of its connection; None where there is none, or where it is on another node."""
    consumers: Annotated[list[ConsumerReport], Meta(max_length=1_000_000)]
    node: Label | None = None
    """The node that says this; None where there is no cluster, as in all that follows."""
    carried_from: Label | None = None
    """The node that has the producer; None if it is this one."""
    through: Annotated[list[Label], Meta(max_length=1000)] = []
    """The nodes between that one and this one, the nearest to the producer first."""
    received: Count | None = None
    """Frames that came from there; None where none are carried."""
    lost: Count | None = None
    """Frames that were accepted there meanwhile, and did not come."""
    edges: Annotated[list[EdgeReport], Meta(max_length=100_000)] = []
    """The nodes that carry the stream from this one."""


class UnreachableReport(msgspec.Struct, frozen=True):
    """A node that another one could not open a link to at its last attempt."""

    node: Label
    why: Label


class NodeReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A node, and which others it has tried to reach. Links are opened only where they are
    needed."""

    node: Label
    reaches: Annotated[list[Label], Meta(max_length=100_000)] = []
    cannot_reach: Annotated[list[UnreachableReport], Meta(max_length=100_000)] = []


class FiguresReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """`GET /figures`: every stream, for operators."""

    streams: Annotated[list[StreamReport], Meta(max_length=100_000)]
    nodes: Annotated[list[NodeReport], Meta(max_length=100_000)] = []
    """The nodes that say this; empty where there is no cluster."""
    silent: Annotated[list[Label], Meta(max_length=100_000)] = []
    """Nodes that were asked, and did not answer in time."""
    omitted: Count = 0
    """Streams that were left out, since there was no room for them."""
