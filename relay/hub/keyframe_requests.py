"""When the producer of a stream is asked for a keyframe, because a viewer can use nothing else."""

from __future__ import annotations

import math
from typing import Protocol
from weakref import ref

import trio
from attrs import define, field
from cachetools import LRUCache

from relay.guard.throttle import DebtBucket
from relay.protocol.messages import Notice

MIN_KEYFRAME_INTERVAL = 1.0
"""Seconds between two requests for keyframes of a stream."""
VIEWER_KEYFRAME_RATE, MAX_VIEWER_KEYFRAMES = 0.5, 6.0
"""How many keyframes a second, and in a row, the viewers of one user or service cause in a stream.
A keyframe takes as much as many other frames. A viewer that comes and goes all the time, or whose
link is too slow, must cost no more than a usual encoder, which makes one every two seconds."""
MAX_REMEMBERED_VIEWERS = 256
"""Users and services whose requests are counted, for each stream."""


class RequestedStream(Protocol):
    """A stream of which keyframes are wanted."""

    stream_id: str

    def notify_producer(self, notice: Notice) -> None:
        """Tell the producer, if there is one."""


@define(eq=False)
class KeyframeRequests:
    """The requests for keyframes of one stream."""

    _stream: ref[RequestedStream]
    """It holds this, and is to be freed at once when it is over."""
    _asked_at: float = -math.inf
    _budgets: LRUCache[str, DebtBucket] | None = field(default=None, init=False)
    """By user or service; None before the first request."""

    def make(self, sender: str) -> None:
        """Ask the producer for a keyframe that a viewer of this user or service needs, unless that
        was done a moment ago or this one has caused too many."""
        now = trio.current_time()
        if now - self._asked_at < MIN_KEYFRAME_INTERVAL or not self._budget(sender).take(1, now):
            return
        self._asked_at = now
        stream = self._stream()
        if stream is not None:
            stream.notify_producer(Notice(code="KEYFRAME_WANTED", stream_id=stream.stream_id))

    def _budget(self, sender: str) -> DebtBucket:
        if self._budgets is None:
            self._budgets = LRUCache(MAX_REMEMBERED_VIEWERS)
        budget: DebtBucket | None = self._budgets.get(sender)
        if budget is None:
            budget = self._budgets[sender] = DebtBucket(VIEWER_KEYFRAME_RATE, MAX_VIEWER_KEYFRAMES)
        return budget
