"""How much one connection may send. Floor 2.

On the way of every frame: a few numbers, looked at once for all that arrived together.
"""

from __future__ import annotations

from collections.abc import Sequence

import limits
from attrs import define, field, frozen

from relay.metrics import Limit
from relay.transport.splice import Message

BURST = 5.0
"""Seconds of its rate that a connection may send at once, as a phone does after a tunnel."""
REMINDER = 1.0
"""Seconds between two errors about what was too much."""
PATIENCE = 10
"""So many reminders, without `CALM` between two, and the connection is closed."""
CALM = 5.0
"""Seconds after which what was too much is forgiven."""


@define(eq=False)
class Bucket:
    """Holds what may still be sent, and fills at a rate."""

    rate: float
    """A second."""
    capacity: float
    _left: float = field(init=False)
    _at: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self._left = self.capacity

    def take(self, amount: int, now: float) -> bool:
        """Take from the bucket if anything is left; it may then owe for a while."""
        left = min(self.capacity, self._left + (now - self._at) * self.rate)
        self._at = now
        if left <= 0:
            self._left = left
            return False
        self._left = left - amount
        return True

    def wait(self) -> float:
        """Seconds until something is left again."""
        return max(0.0, -self._left) / self.rate


@frozen
class Excess:
    """More than a connection may send."""

    limit: Limit
    retry_after: int
    """Milliseconds."""
    tell: bool
    """Whether it is time for an error."""
    goes_on: bool
    """Whether it went on for so long that the connection is better closed."""


@frozen
class Allowance:
    """What each connection may send, such as `100/second`."""

    messages: str
    frames: str
    bytes: str


@define(eq=False)
class Throttle:
    """Of one connection."""

    _allowance: Allowance
    _messages: Bucket = field(init=False)
    _frames: Bucket = field(init=False)
    _bytes: Bucket = field(init=False)
    _reminded: float = float("-inf")
    _last: float = float("-inf")
    _reminders: int = 0

    def __attrs_post_init__(self) -> None:
        self._messages = _bucket(self._allowance.messages)
        self._frames = _bucket(self._allowance.frames)
        self._bytes = _bucket(self._allowance.bytes)

    def take(self, messages: Sequence[Message], now: float) -> Excess | None:
        """Count messages that came at once; None when they may go on."""
        if not self._messages.take(len(messages), now):
            return self._exceed(Limit.MESSAGES, self._messages, now)
        size = 0
        for message in messages:
            size += len(message.payload)
        if not self._bytes.take(size, now):
            return self._exceed(Limit.BYTES, self._bytes, now)
        return None

    def take_noise(self, count: int, now: float) -> Excess | None:
        """Count, as messages, what is none and has to be looked at all the same."""
        if self._messages.take(count, now):
            return None
        return self._exceed(Limit.MESSAGES, self._messages, now)

    def take_frames(self, count: int, now: float) -> Excess | None:
        """Count frames, which were counted as messages before."""
        if self._frames.take(count, now):
            return None
        return self._exceed(Limit.FRAMES, self._frames, now)

    def _exceed(self, limit: Limit, bucket: Bucket, now: float) -> Excess:
        if now - self._last > CALM:
            self._reminders = 0
        self._last = now
        tell = now - self._reminded >= REMINDER
        if tell:
            self._reminded = now
            self._reminders += 1
        retry_after = max(1, round(bucket.wait() * 1000))
        return Excess(limit, retry_after, tell, self._reminders > PATIENCE)


def _bucket(text: str) -> Bucket:
    allowed = limits.parse(text)
    rate = allowed.amount / allowed.get_expiry()
    return Bucket(rate, max(allowed.amount, rate * BURST))
