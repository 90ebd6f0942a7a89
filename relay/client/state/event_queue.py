"""Unread events: a bounded number, and only the latest of each state."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from enum import StrEnum
from typing import Any

import trio
from attrs import define, field, frozen

from relay.client.events import Alert, Authenticated, Frame, Notice, Problem, Registered, Status
from relay.errors import RelayError

MAX_UNREAD_ALERTS = 1000
"""Alerts beyond that stay in the relay's store until there is room."""


class ClientState(StrEnum):
    """The state of a `RelayClient`; lifecycle.py has a diagram of the transitions."""

    CONNECTING = "connecting"
    READY = "ready"
    WAITING = "waiting"
    PAUSED = "paused"
    CLOSED = "closed"


@frozen
class StateChange:
    """The state of a `RelayClient` has changed."""

    state: ClientState
    error: RelayError | None = None
    """The reason, with `waiting` and `closed`."""
    retry_in: float | None = None
    """Seconds until the next attempt, with `waiting`."""


@frozen
class Demand:
    """The number of viewers of the published stream has changed, or which layers they need."""

    stream_id: str
    consumers: int
    layers: tuple[str, ...] = ()
    """The ids of the layers that somebody needs, the smallest first; empty without layers."""


@frozen
class KeyframeWanted:
    """A viewer of the published stream waits for a keyframe: send one soon."""

    stream_id: str


@frozen
class StreamEntry:
    """A live stream that this client may watch."""

    stream_id: str
    status: str
    metadata: Mapping[str, Any] | None = None


@frozen
class Streams:
    """All live streams that this client may watch; again after each change."""

    streams: tuple[StreamEntry, ...]


ClientEvent = (
    Frame
    | Alert
    | Status
    | Notice
    | Problem
    | Authenticated
    | Registered
    | Demand
    | KeyframeWanted
    | StateChange
    | Streams
)


@define(eq=False)
class EventQueue:
    """Never makes the reader wait. A newer event replaces one that says the same; the senders keep
    alerts within `room`, and the frames of each stream within a number of their own."""

    _events: dict[Hashable, ClientEvent] = field(factory=dict)
    _frames: dict[str, deque[Frame]] = field(factory=dict)
    """By stream, in the order of their turns."""
    _filled: trio.Event = field(factory=trio.Event)
    _emptied: trio.Event = field(factory=trio.Event)
    """Set, and made anew, when half of the room is free again."""
    _end: RelayError | None = None

    @property
    def room(self) -> int:
        """How many more alerts may be put."""
        return max(0, MAX_UNREAD_ALERTS - len(self._events))

    async def wait_for_room(self) -> None:
        """Wait until half of the room is free."""
        while len(self._events) > MAX_UNREAD_ALERTS // 2:
            await self._emptied.wait()

    def put(self, event: ClientEvent) -> None:
        key = _key(event)
        self._events.pop(key, None)
        if len(self._events) < 2 * MAX_UNREAD_ALERTS or isinstance(event, StateChange):
            self._events[key] = event
        self._filled.set()

    def put_frame(self, frame: Frame, *, limit: int | None) -> None:
        """Put a frame, and keep only the newest `limit` frames of its stream; None means all."""
        waiting = self._frames.setdefault(frame.stream_id, deque())
        while limit is not None and len(waiting) >= limit:
            waiting.popleft()
        waiting.append(frame)
        self._filled.set()

    def waiting_frames(self, stream_id: str) -> int:
        return len(self._frames.get(stream_id, ()))

    def newest_frame(self, stream_id: str) -> Frame | None:
        waiting = self._frames.get(stream_id)
        return waiting[-1] if waiting else None

    def drop_frames(self, stream_id: str) -> None:
        self._frames.pop(stream_id, None)

    def end(self, error: RelayError) -> None:
        """Add nothing any more; what is there may still be taken."""
        self._end = error
        self._filled.set()

    async def get(self) -> ClientEvent:
        """Wait for the next event: frames after all others, their streams in turn."""
        await trio.lowlevel.checkpoint()
        while not self._events and not self._frames:
            if self._end is not None:
                raise self._end
            if self._filled.is_set():
                self._filled = trio.Event()
            await self._filled.wait()
        if self._events:
            event = self._events.pop(next(iter(self._events)))
            if len(self._events) == MAX_UNREAD_ALERTS // 2:
                self._emptied.set()
                self._emptied = trio.Event()
            return event
        stream_id, waiting = next(iter(self._frames.items()))
        frame = waiting.popleft()
        del self._frames[stream_id]
        if waiting:
            self._frames[stream_id] = waiting
        return frame


def _key(event: ClientEvent) -> Hashable:
    match event:
        case Alert(alert_id=alert_id, stream_id=stream_id):
            return Alert, stream_id, alert_id
        case Status(stream_id=stream_id) | Demand(stream_id=stream_id):
            return type(event), stream_id
        case Problem(code=code, stream_id=stream_id):
            return Problem, code, stream_id
        case other:
            return (type(other),)
