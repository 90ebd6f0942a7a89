"""How a client that comes back behaves: its times, and what the end of a connection means. Floor 2.

The same as in relay-client.js, `judgeEnding` and `DEFAULTS`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Literal

from attrs import define, field, frozen

from relay.client.errors import ServerError
from relay.client.events import Notice

Reason = Literal["connect", "expiring", "expired", "refused"]
Word = ServerError | Notice

SESSION_EXPIRED, FINAL = 4001, range(4500, 5000)
POLICY = 1008
BREACHES = {1002, 1003, 1007, POLICY, 1009, 1010}
"""Whoever did this would do it again."""
UNSEEN = {None, 1005, 1006}
LAST_WORDS = {"SESSION_REVOKED", "SESSION_EXPIRED", "SUPERSEDED", "AUTH_FAILED"}
"""Errors behind which nothing comes but a Close."""
PASSING = {"STORE_UNAVAILABLE", "RATE_LIMITED", "AUTH_UNAVAILABLE", "TOO_MANY_CONNECTIONS"}
"""Errors after which the same request may succeed."""


@frozen
class Manners:
    """Times in seconds. The defaults are for the network of a phone."""

    silence: float = 10.0
    """After so long without a byte the relay is asked for a sign of life."""
    patience: float = 10.0
    """How long that may take before the connection counts as lost."""
    open_timeout: float = 10.0
    """From the first packet to being authenticated."""
    token_timeout: float = 30.0
    """How long the application may take to get a token."""
    first_pause: float = 0.3
    longest_pause: float = 15.0
    """Pauses between attempts double from the first to the longest."""
    steady: float = 5.0
    """So long a connection has to last for the pauses to begin small again."""
    retry: float = 2.0
    """Until a request is tried again, where the relay names no time."""
    goodbye: float = 2.0
    """How long the Close may take that follows a last word."""
    max_buffered: int = 256 * 1024
    """Bytes; frames are skipped while more than this is under way to the relay."""

    def until_retry(self, error: ServerError) -> float:
        return self.retry if error.retry_after is None else error.retry_after / 1000


@frozen
class Ending:
    """How a connection ended, as far as it was seen from here."""

    code: int | None
    """Of the Close; None where there was none."""
    reason: str | None
    word: Word | None = None
    """The `error` or `notice`, if that was the last thing heard."""


@frozen
class Verdict:
    """What to do after an ending."""

    again: bool
    """Whether to come back."""
    reason: Reason = "connect"
    """Why a token is asked for then."""
    after: float = 0.0
    """And not before so many seconds."""


def judge_ending(ending: Ending) -> Verdict:
    """Section "Close codes" of the protocol. The last word stands in for a code that nobody saw."""
    code, said = ending.code, ending.word and ending.word.code
    after = ((ending.word and ending.word.retry_after) or 0) / 1000
    unseen = code in UNSEEN
    stop = Verdict(again=False, after=after)
    if (code is not None and code in FINAL) or said in {"SESSION_REVOKED", "SUPERSEDED"}:
        return stop
    if (said == "AUTH_FAILED" and (unseen or code == POLICY)) or (
        code == POLICY and re.fullmatch("authentication failed", ending.reason or "", re.IGNORECASE)
    ):
        return Verdict(again=True, reason="refused", after=after)
    if code == SESSION_EXPIRED or (unseen and said == "SESSION_EXPIRED"):
        return Verdict(again=True, reason="expired", after=after)
    if code in BREACHES or (unseen and said == "MESSAGE_TOO_BIG" and not after):
        return stop
    return Verdict(again=True, after=after)


@define(eq=False)
class Pauses:
    """The pauses between attempts: they grow, and are drawn at random, so that those who were cut
    off together do not come back together."""

    _manners: Manners
    _draw: Callable[[], float] = field(default=random.random)
    """From 0 to 1."""
    _failures: int = 0

    def next(self) -> float:
        """Seconds. The first attempt follows soon; later ones keep half of their pause."""
        longest = self._manners.longest_pause
        pause = min(longest, self._manners.first_pause * 2.0 ** min(self._failures, 30))
        share = 0.5 + self._draw() / 2 if self._failures else self._draw()
        self._failures += 1
        return pause * share

    def arrived(self) -> None:
        """It worked, though perhaps not for long."""
        self._failures = min(self._failures, 2)

    def reset(self) -> None:
        self._failures = 0
