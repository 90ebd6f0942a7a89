"""When a client reconnects: its times, and what the end of a connection means.

`judge_ending` and the default times are those of relay-client.js.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Literal

from attrs import define, field, frozen

from relay.client.errors import Disconnected, ServerError
from relay.client.events import Notice
from relay.client.websocket import ABNORMAL_CLOSURE, NO_STATUS

TokenReason = Literal["connect", "expiring", "expired", "refused"]
LastWord = ServerError | Notice

POLICY_VIOLATION, SESSION_EXPIRED, FINAL_CODES = 1008, 4001, range(4500, 5000)
BREACH_CODES = {1002, 1003, 1007, POLICY_VIOLATION, 1009, 1010}
"""After one of these, reconnecting would only lead to the same close."""
UNSEEN_CODES = {None, NO_STATUS, ABNORMAL_CLOSURE}
FINAL_ERRORS = {"SESSION_REVOKED", "SESSION_EXPIRED", "SUPERSEDED", "AUTH_FAILED"}
"""Errors after which only a Close follows."""
TRANSIENT_ERRORS = {"STORE_UNAVAILABLE", "RATE_LIMITED", "AUTH_UNAVAILABLE", "TOO_MANY_CONNECTIONS"}
"""Errors after which the same request may succeed."""


@frozen
class ReconnectPolicy:
    """Times in seconds. The defaults are for the network of a phone."""

    silence_timeout: float = 10.0
    """Silence after which the client probes the connection."""
    ping_timeout: float = 10.0
    """How long the reply may take before the connection counts as lost."""
    open_timeout: float = 10.0
    """Time from the first packet until the client is authenticated."""
    token_timeout: float = 30.0
    """How long the application may take to get a token."""
    min_backoff: float = 0.3
    max_backoff: float = 15.0
    """Pauses between attempts double from the first to the longest."""
    stable_after: float = 5.0
    """How long a connection must last before the pauses are short again."""
    retry_interval: float = 2.0
    """Time until a request is repeated, if the relay gives no other time."""
    close_timeout: float = 2.0
    """How long the Close that follows a final error may take."""
    max_buffered_bytes: int = 256 * 1024
    """Frames are skipped while more bytes than this are in transit to the relay."""

    def until_retry(self, error: ServerError) -> float:
        """Seconds until a request that got this error may be tried again."""
        return self.retry_interval if error.retry_after is None else error.retry_after / 1000


@frozen
class ConnectionEnding:
    """How a connection ended, as seen from the client."""

    code: int | None
    """The code of the Close; None where there was none."""
    reason: str | None
    word: LastWord | None = None
    """The `error` or `notice`, if that was the last message."""
    own_code: int = ABNORMAL_CLOSURE
    """The code that the application gets if there was no Close."""

    @property
    def error(self) -> ServerError | None:
        return self.word if isinstance(self.word, ServerError) else None

    def disconnected(self) -> Disconnected:
        return Disconnected(self.code or self.own_code, self.reason, self.error)


@frozen
class Verdict:
    """What to do after a connection has ended."""

    again: bool
    """Whether to reconnect."""
    reason: TokenReason = "connect"
    """The reason for which a token is then requested."""
    after: float = 0.0
    """The minimum delay, in seconds."""


def judge_ending(ending: ConnectionEnding) -> Verdict:
    """Decide what an ending means, as in the section "Close codes" of the protocol.

    The last message replaces a code that was not seen.
    """
    code, said = ending.code, ending.word and ending.word.code
    after = ((ending.word and ending.word.retry_after) or 0) / 1000
    unseen = code in UNSEEN_CODES
    stop = Verdict(again=False, after=after)
    if (code is not None and code in FINAL_CODES) or said in {"SESSION_REVOKED", "SUPERSEDED"}:
        return stop
    if (said == "AUTH_FAILED" and (unseen or code == POLICY_VIOLATION)) or (
        code == POLICY_VIOLATION
        and re.fullmatch("authentication failed", ending.reason or "", re.IGNORECASE)
    ):
        return Verdict(again=True, reason="refused", after=after)
    if code == SESSION_EXPIRED or (unseen and said == "SESSION_EXPIRED"):
        return Verdict(again=True, reason="expired", after=after)
    if code in BREACH_CODES or (unseen and said == "MESSAGE_TOO_BIG" and not after):
        return stop
    return Verdict(again=True, after=after)


@define(eq=False)
class ReconnectPauses:
    """The pauses between attempts. They grow and are random, so that clients that were
    disconnected together do not all reconnect at the same time."""

    _policy: ReconnectPolicy
    _draw: Callable[[], float] = field(default=random.random)
    """From 0 to 1."""
    _failures: int = 0

    def next(self) -> float:
        """Seconds. The first attempt follows soon; later ones keep half of their pause."""
        longest = self._policy.max_backoff
        pause = min(longest, self._policy.min_backoff * 2.0 ** min(self._failures, 30))
        share = 0.5 + self._draw() / 2 if self._failures else self._draw()
        self._failures += 1
        return pause * share

    def connected(self) -> None:
        """It worked, though perhaps not for long."""
        self._failures = min(self._failures, 2)

    def reset(self) -> None:
        self._failures = 0
