"""How much one connection may send.

This runs for every frame, so it is a few numbers, checked once for all messages that arrived
together.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field, frozen

from relay.guard.rates import RateLimit
from relay.metrics import Limit
from relay.transport.framing.frame_parser import Message

BURST_SECONDS = 5.0
"""A connection may send this many seconds of its rate at once, as a phone does after a tunnel."""
EXCESS_ERROR_INTERVAL = 1.0
"""Seconds between two errors about exceeded limits."""
MAX_EXCESS_ERRORS = 10
"""Errors without a pause of `EXCESS_RESET_INTERVAL`, after which the connection is closed."""
EXCESS_RESET_INTERVAL = 5.0
"""Seconds without excess after which the count of errors starts again."""


@define(eq=False, repr=False)
class DebtBucket:
    """A token bucket that may go into debt: what may still be sent."""

    rate: float
    """Per second."""
    capacity: float
    _left: float = field(init=False)
    _at: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self._left = self.capacity

    def take(self, amount: int, now: float) -> bool:
        """Take from the bucket if anything is left, even if that puts it in debt for a while."""
        left = min(self.capacity, self._left + (now - self._at) * self.rate)
        self._at = now
        if left <= 0:
            self._left = left
            return False
        self._left = left - amount
        return True

    def wait(self) -> float:
        """Seconds until something may be taken again."""
        return max(0.0, -self._left) / self.rate


@frozen
class ExceededLimit:
    """A limit that a connection has exceeded."""

    limit: Limit
    retry_after: int
    """Milliseconds."""
    tell: bool
    """Whether an error is due."""
    persists: bool
    """Whether it has lasted so long that the connection is to be closed."""


@frozen
class ThrottleRates:
    """What one connection may send, such as `100/second`."""

    messages: str
    frames: str
    bytes: str


@define(eq=False, repr=False)
class Throttle:
    """The limits of one connection, and how much of them it has used."""

    _rates: ThrottleRates
    _messages: DebtBucket = field(init=False)
    _frames: DebtBucket = field(init=False)
    _bytes: DebtBucket = field(init=False)
    _told_at: float = float("-inf")
    _exceeded_at: float = float("-inf")
    _errors: int = 0

    def __attrs_post_init__(self) -> None:
        self._messages = _bucket(self._rates.messages)
        self._frames = _bucket(self._rates.frames)
        self._bytes = _bucket(self._rates.bytes)

    def take(self, messages: Sequence[Message], now: float) -> ExceededLimit | None:
        """Count messages that arrived together; None if they are within the limits."""
        if not self._messages.take(len(messages), now):
            return self._exceed(Limit.MESSAGES, self._messages, now)
        size = 0
        for message in messages:
            size += len(message.payload)
        if not self._bytes.take(size, now):
            return self._exceed(Limit.BYTES, self._bytes, now)
        return None

    def take_overhead(self, count: int, now: float) -> ExceededLimit | None:
        """Count as messages what costs as much as one, such as control frames."""
        if self._messages.take(count, now):
            return None
        return self._exceed(Limit.MESSAGES, self._messages, now)

    def take_frames(self, count: int, now: float) -> ExceededLimit | None:
        """Count frames, which `take` has counted as messages."""
        if self._frames.take(count, now):
            return None
        return self._exceed(Limit.FRAMES, self._frames, now)

    def _exceed(self, limit: Limit, bucket: DebtBucket, now: float) -> ExceededLimit:
        if now - self._exceeded_at > EXCESS_RESET_INTERVAL:
            self._errors = 0
        self._exceeded_at = now
        tell = now - self._told_at >= EXCESS_ERROR_INTERVAL
        if tell:
            self._told_at = now
            self._errors += 1
        retry_after = max(1, round(bucket.wait() * 1000))
        return ExceededLimit(limit, retry_after, tell, self._errors > MAX_EXCESS_ERRORS)


def _bucket(text: str) -> DebtBucket:
    limit = RateLimit.parse(text)
    rate = limit.count / limit.seconds
    return DebtBucket(rate, max(limit.count, rate * BURST_SECONDS))
