"""What came for an application and was not taken yet: bounded, with the newest of all that is a
state. Floor 2."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from enum import StrEnum
from typing import Any

import trio
from attrs import define, field, frozen

from relay.client.events import Alert, Authenticated, Frame, Notice, Problem, Registered, Status
from relay.errors import RelayError

MOST_UNREAD = 1000
"""Alerts beyond that stay in the relay's store until there is room."""


class State(StrEnum):
    """Where a `RelayClient` stands; relay_client.py draws what leads from one to another."""

    CONNECTING = "connecting"
    READY = "ready"
    WAITING = "waiting"
    PAUSED = "paused"
    CLOSED = "closed"


@frozen
class StateChange:
    state: State
    error: RelayError | None = None
    """Why, with `waiting` and `closed`."""
    retry_in: float | None = None
    """Seconds until the next attempt, with `waiting`."""


@frozen
class Demand:
    """The viewers of the own stream changed between none and some."""

    stream_id: str
    consumers: int


@frozen
class StreamEntry:
    """A stream that lives, and may be seen."""

    stream_id: str
    status: str
    metadata: Mapping[str, Any] | None = None


@frozen
class Streams:
    """All of them; again after each change."""

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
    | StateChange
    | Streams
)


@define(eq=False)
class Unread:
    """Takes whatever comes at once. What is newer takes the place of what says the same; alerts go
    by `has_room`, frames by how many of their stream may wait."""

    on_room: Callable[[], None] = field(default=lambda: None)
    """Called when there is room again after there was none."""
    _events: dict[Hashable, ClientEvent] = field(factory=dict)
    _frames: dict[str, deque[Frame]] = field(factory=dict)
    """By stream; whose turn is next stands first."""
    _came: trio.Event = field(factory=trio.Event)
    _was_full: bool = False
    _end: RelayError | None = None

    @property
    def room(self) -> int:
        """For so many alerts."""
        left = max(0, MOST_UNREAD - len(self._events))
        self._was_full = self._was_full or not left
        return left

    def put(self, event: ClientEvent) -> None:
        key = _key(event)
        self._events.pop(key, None)
        if len(self._events) < 2 * MOST_UNREAD or isinstance(event, StateChange):
            self._events[key] = event
        self._came.set()

    def put_frame(self, frame: Frame, *, most: int | None) -> None:
        """Of each stream at most so many wait, if there is a bound: the newest."""
        waiting = self._frames.setdefault(frame.stream_id, deque())
        while most is not None and len(waiting) >= most:
            waiting.popleft()
        waiting.append(frame)
        self._came.set()

    def waiting_frames(self, stream_id: str) -> int:
        return len(self._frames.get(stream_id, ()))

    def newest_frame(self, stream_id: str) -> Frame | None:
        waiting = self._frames.get(stream_id)
        return waiting[-1] if waiting else None

    def drop_frames(self, stream_id: str) -> None:
        self._frames.pop(stream_id, None)

    def end(self, error: RelayError) -> None:
        """Nothing comes any more; what is there may still be taken."""
        self._end = error
        self._came.set()

    async def take(self) -> ClientEvent:
        """The next event: frames after all others, their streams in turn."""
        await trio.lowlevel.checkpoint()
        while not self._events and not self._frames:
            if self._end is not None:
                raise self._end
            if self._came.is_set():
                self._came = trio.Event()
            await self._came.wait()
        if self._events:
            event = self._events.pop(next(iter(self._events)))
            if self._was_full and len(self._events) <= MOST_UNREAD // 2:
                self._was_full = False
                self.on_room()
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
        case Problem(code=code, stream_id=where):
            return Problem, code, where
        case other:
            return (type(other),)
