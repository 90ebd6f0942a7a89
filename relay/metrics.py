"""Counts for the whole relay, read by `/stats` and `/metrics`.

These are totals: nothing here names a stream, a user or a connection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from enum import StrEnum
from itertools import accumulate
from math import inf

import trio
from attrs import define, field

from relay.protocol.endings import Ending

AGE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds, in seconds."""
BATCH_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Upper bounds, in items of a batch."""


class Limit(StrEnum):
    """A limit that a peer reached."""

    NETWORK = "network"
    ORIGIN = "origin"
    NEW_CONNECTIONS = "new_connections"
    CONNECTIONS = "connections"
    CONNECTIONS_OF_ADDRESS = "connections_of_address"
    CONNECTIONS_OF_USER = "connections_of_user"
    UNAUTHENTICATED = "unauthenticated"
    FAILED_AUTHS = "failed_auths"
    UNKNOWN_TOKENS = "unknown_tokens"
    MESSAGES = "messages"
    FRAMES = "frames"
    BYTES = "bytes"
    ALERTS = "alerts"
    ALERT_BYTES = "alert_bytes"
    REGISTRATIONS = "registrations"
    STREAM_LISTS = "stream_lists"
    RENEWALS = "renewals"
    REQUESTS = "requests"
    STREAMS_OF_USER = "streams_of_user"
    SUBSCRIPTIONS = "subscriptions"
    FRAME_BUFFER = "frame_buffer"
    REPLY_BUFFER = "reply_buffer"
    SUBSCRIPTIONS_OF_USER = "subscriptions_of_user"
    READERS_OF_LINK = "readers_of_link"


class RenditionOutcome(StrEnum):
    """What became of a picture that was to be made smaller."""

    MADE = "made"
    UNSUITABLE = "unsuitable"
    """It is no usual JPEG, or too large."""
    UNDECODABLE = "undecodable"
    KILLED = "killed"
    """It took the worker process too long."""
    CRASHED = "crashed"
    """The worker process ended, or its answer was wrong."""
    BANNED = "banned"
    """Its owner's pictures killed or crashed a worker not long ago."""
    OVER_BUDGET = "over_budget"
    """There was no room for it."""
    UNAVAILABLE = "unavailable"
    """There was no worker process in time."""
    CANCELLED = "cancelled"
    """It was not wanted any more."""


class PictureOutcome(StrEnum):
    """What became of a still or a clip that was to be kept with an alert."""

    KEPT = "kept"
    NO_PICTURE = "no_picture"
    """The stream sent none in time, or none that is a JPEG picture."""
    NO_ROOM = "no_room"
    """As many bytes are kept, or held in memory, as may be."""
    BUSY = "busy"
    """Too many were being kept at that moment."""
    TOO_LATE = "too_late"
    """The alert was delivered long after its moment."""
    WRITE_FAILED = "write_failed"


@define(eq=False, repr=False)
class Histogram:
    """Counts values by upper bounds."""

    bounds: tuple[float, ...] = AGE_BUCKETS
    counts: list[int] = field(init=False)
    """For each bound, the values up to it and above the one before; at last those above all."""
    total: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound, infinity at last, with the number of values up to it."""
        return list(zip((*self.bounds, inf), accumulate(self.counts), strict=True))

    def summary(self) -> dict[str, int]:
        """Return the counts by their bounds as text."""
        names = [f"{bound:g}" for bound in self.bounds] + ["inf"]
        return dict(zip(names, self.counts, strict=True))


@define(eq=False, repr=False)
class LinkHistograms:
    """What answers to pings say of the links to viewers."""

    round_trip: Histogram = field(factory=Histogram)
    """Seconds from a ping to its answer while no frame was under way."""
    frame_delivery: Histogram = field(factory=Histogram)
    """Seconds from accepting a frame to the answer to the ping behind it."""


@define(eq=False, repr=False)
class HopMetrics:
    """What crosses from node to node, apart from what viewers get."""

    frames: Counter[str] = field(factory=Counter)
    """Frames that came from other nodes, `received`, and those that did not, `lost`."""
    takes: Counter[str] = field(factory=Counter)
    """Streams taken over from other nodes, by outcome: `continued` or `renewed`."""
    moves: Counter[str] = field(factory=Counter)
    """Viewers that were to go to another worker of this machine: `moved`, or `stayed`."""
    sent: Metrics = field(factory=lambda: Metrics())  # noqa: PLW0108 - it comes below
    """What a consumer counts, of those that are other nodes."""


@define(eq=False, repr=False)
class Metrics:
    """Totals since the start, and what is open now."""

    connections: int = 0
    """Open WebSocket connections."""
    connections_accepted: int = 0
    authenticated: int = 0
    """Open connections that are authenticated."""
    verifications: int = 0
    verification_queries: int = 0
    frames_accepted: int = 0
    frame_age: Histogram = field(factory=Histogram)
    """Seconds from accepting a frame to writing it to a consumer."""
    links: LinkHistograms = field(factory=LinkHistograms)
    renditions: Counter[RenditionOutcome] = field(factory=Counter)
    """Pictures that were to be made smaller."""
    rendition_time: Histogram = field(factory=Histogram)
    """Seconds that the worker process had a picture, in all its sizes, if they were made."""
    alerts_stored: int = 0
    alerts_delivered: int = 0
    alerts_removed: int = 0
    """Alerts deleted because they were too old or too many."""
    alerts_unreadable: int = 0
    """Alerts that were skipped, because they cannot be read or delivered."""
    dispatch_failing_since: float | None = None
    """Since when stored alerts cannot be read to be delivered, by Trio's clock."""
    webhook_alerts: Counter[str] = field(factory=Counter)
    """By the outcome of an attempt."""
    target_events: Counter[tuple[str, str]] = field(factory=Counter)
    """By the kind of target and what became of the event."""
    alert_pictures: Counter[tuple[str, PictureOutcome]] = field(factory=Counter)
    """By kind, `still` or `clip`."""
    clip_buffer_bytes: int = 0
    """Of pictures that are held for clips."""
    pictures_removed: int = 0
    """Alerts whose stills and clips were removed."""
    picture_bytes: int = 0
    """Of stills and clips that are kept on all nodes, as was last read."""
    hop: HopMetrics | None = None
    """None where there are no other nodes."""
    limits_hit: Counter[Limit] = field(factory=Counter)
    layer_switches: Counter[str] = field(factory=Counter)
    """By direction, `up` or `down`."""
    endings: Counter[Ending] = field(factory=Counter)
    auth_attempts: Counter[str] = field(factory=Counter)
    """By outcome."""
    verification_time: Histogram = field(factory=Histogram)
    """Seconds from asking whose token it is to the answer."""
    verification_batch: Histogram = field(factory=lambda: Histogram(BATCH_SIZE_BUCKETS))
    """Tokens that were looked up together."""

    def dispatch_stalled_for(self) -> float:
        """Seconds for which the delivery of stored alerts has not moved, since they cannot be
        read."""
        since = self.dispatch_failing_since
        return 0.0 if since is None else trio.current_time() - since
