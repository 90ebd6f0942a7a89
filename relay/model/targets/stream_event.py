"""Events of streams beside alerts: when one goes online or offline, is watched or not any more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, get_args

from attrs import field, frozen

StreamEventKind = Literal["stream.online", "stream.offline", "stream.watched", "stream.unwatched"]
STREAM_EVENT_KINDS: tuple[StreamEventKind, ...] = get_args(StreamEventKind)
ALERT_EVENT = "alert"
"""The kind of event that an alert is."""


@frozen
class StreamEvent:
    """An event as committed. Its id is one of the same sequence as the ids of alerts."""

    event_id: int
    stream_id: str
    owner_id: str
    kind: StreamEventKind
    epoch: int
    """Of the stream, as in `status`."""
    timestamp: int
    """When it was stored, in ms since the Unix epoch by the database's clock."""


@frozen
class StreamPresence:
    """What one process knows of a stream that is produced there."""

    stream_id: str
    owner_id: str
    epoch: int
    term: int
    """Grows as the stream moves from node to node of a cluster; 0 without one."""
    online: bool
    watched: bool | None
    """Whether anybody watches it, on any node; None: not known yet, so nothing is told of it."""


@frozen
class EventSources:
    """The processes that tell of streams."""

    wanted: bool
    """Whether any target wants stream events."""
    is_new: bool = False
    """Whether the process that asks was not known."""
    others: Mapping[str, datetime | None] = field(factory=dict)
    """The last sign of life of each other process that has told of a stream, by the database's
    clock; None: there is none."""
