"""Rate limits per key, such as `100/minute` for each address.

Fixed windows: one count and one deadline per key. The tables are bounded, go by Trio's clock and
need no thread.
"""

from __future__ import annotations

import re

import trio
from attrs import define, field, frozen
from cachetools import TLRUCache

MAX_RATE_KEYS = 16_384
"""Keys in one table. A new key beyond that replaces the least recently used one."""

_RATE_TEXT = re.compile(r"([1-9][0-9]{0,11})/(second|minute|hour)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


@frozen
class RateLimit:
    """A number of events in a window of time."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """Read `100/minute`, as the settings spell it; `ValueError` for anything else."""
        match = _RATE_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a rate: {text!r}")
        return cls(int(match[1]), _SECONDS[match[2]])


@define(eq=False, repr=False)
class _Window:
    """The events of one key so far. It counts in place: to store it anew would cost several times
    as much as to find it."""

    count: int
    ends: float
    """By Trio's clock."""


def _window_ends(_key: str, window: _Window, _now: float) -> float:
    return window.ends


@define(eq=False, repr=False)
class RateLimiter:
    """Counts events per key in fixed windows. A window begins with the key's first event."""

    text: str
    """Such as `100/minute`."""
    _max_keys: int = MAX_RATE_KEYS
    _limit: RateLimit = field(init=False, repr=False)
    _windows: TLRUCache[str, _Window] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._limit = RateLimit.parse(self.text)
        self._windows = TLRUCache(self._max_keys, _window_ends, timer=trio.current_time)

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, key: str) -> float | None:
        """Count an event. Returns the seconds to wait if it exceeds the limit, else None."""
        window = self._windows.get(key)
        if window is None:
            window = _Window(0, trio.current_time() + self._limit.seconds)
            self._windows[key] = window
        window.count += 1
        if window.count <= self._limit.count:
            return None
        return window.ends - trio.current_time()

    def take_back(self, key: str) -> None:
        """Count an event no longer."""
        window = self._windows.get(key)
        if window is not None and window.count > 0:
            self._windows[key] = _Window(window.count - 1, window.ends)

    def is_full(self, key: str) -> bool:
        """Whether the next event would exceed the limit."""
        window = self._windows.get(key)
        return window is not None and window.count >= self._limit.count

    def forget(self, key: str) -> None:
        self._windows.pop(key, None)


def _expiry(_key: str, expiry: float, _now: float) -> float:
    return expiry


@define(eq=False, repr=False)
class ExpiringKeys:
    """A bounded set of keys. Each is forgotten some seconds after it was last added."""

    _seconds: float
    _max_keys: int = MAX_RATE_KEYS
    _expiries: TLRUCache[str, float] = field(init=False, repr=False)
    """When each key expires, by Trio's clock."""

    def __attrs_post_init__(self) -> None:
        self._expiries = TLRUCache(self._max_keys, _expiry, timer=trio.current_time)

    def __len__(self) -> int:
        return len(self._expiries)

    def add(self, key: str, seconds: float | None = None) -> None:
        """Add a key, or start its time again. `seconds` is less than the usual time for one that
        another process has had for a while; 0 forgets it."""
        if seconds is None:
            seconds = self._seconds
        if seconds > 0:
            self._expiries[key] = trio.current_time() + min(seconds, self._seconds)
        else:
            self.forget(key)

    def remaining(self, key: str) -> float | None:
        """Seconds until the key expires; None if it is not in the set."""
        expiry = self._expiries.get(key)
        return None if expiry is None else expiry - trio.current_time()

    def forget(self, key: str) -> None:
        self._expiries.pop(key, None)

    def all_remaining(self) -> dict[str, float]:
        """The keys, and the seconds until each expires."""
        self._expiries.expire()
        now = trio.current_time()
        return {key: expiry - now for key, expiry in self._expiries.items()}
