"""How often something may happen, counted for each key. Floor 2.

By the fixed windows of the `limits` library, which cost one number a key, over a store that is
bounded, keeps Trio's time, and needs no thread.
"""

from __future__ import annotations

from collections import OrderedDict

import limits
import trio
from attrs import define, field
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

MOST_KEYS = 16_384
"""That one store knows; with more, it forgets those that were not seen for longest."""


class BoundedStorage(Storage):
    """Numbers that expire, for the strategies of `limits`."""

    STORAGE_SCHEME = None
    base_exceptions = ()

    def __init__(self, most_keys: int = MOST_KEYS) -> None:
        super().__init__()
        self._most_keys = most_keys
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count, expires = self._find(key)
        if not count:
            expires = trio.current_time() + expiry
        self._counts[key] = (count + amount, expires)
        self._counts.move_to_end(key)
        if len(self._counts) > self._most_keys:
            self._counts.popitem(last=False)
        return count + amount

    def get(self, key: str) -> int:
        return self._find(key)[0]

    def get_expiry(self, key: str) -> float:
        """By Trio's clock."""
        count, expires = self._find(key)
        return expires if count else trio.current_time()

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        forgotten = len(self._counts)
        self._counts.clear()
        return forgotten

    def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    def _find(self, key: str) -> tuple[int, float]:
        count, expires = self._counts.get(key, (0, 0.0))
        return (count, expires) if expires > trio.current_time() else (0, 0.0)


@define(eq=False)
class Rate:
    """So many in so long, such as `100/minute`, for each key."""

    text: str
    store: BoundedStorage = field(factory=BoundedStorage, repr=False)
    _item: limits.RateLimitItem = field(init=False, repr=False)
    _limiter: FixedWindowRateLimiter = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._item = limits.parse(self.text)
        self._limiter = FixedWindowRateLimiter(self.store)

    def hit(self, key: str) -> float | None:
        """Count one more; seconds to wait when it is one too many."""
        if self._limiter.hit(self._item, key):
            return None
        reset_time, _ = self._limiter.get_window_stats(self._item, key)
        return max(0.0, reset_time - trio.current_time())

    def is_full(self, key: str) -> bool:
        """Whether the next would be one too many."""
        return not self._limiter.test(self._item, key)

    def forget(self, key: str) -> None:
        self._limiter.clear(self._item, key)


@define(eq=False)
class Marks:
    """Keys that are remembered for a while."""

    seconds: float
    store: BoundedStorage = field(factory=BoundedStorage, repr=False)

    def set(self, key: str) -> None:
        self.store.clear(key)
        self.store.incr(key, self.seconds)

    def left(self, key: str) -> float | None:
        """Seconds for which the key is still remembered; None when it is not."""
        return self.store.get_expiry(key) - trio.current_time() if self.store.get(key) else None

    def forget(self, key: str) -> None:
        self.store.clear(key)
