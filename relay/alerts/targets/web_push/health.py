"""Which push services answer.

Thousands of browsers have one push service in common. When it stalls, each of them would wait for
it in vain, in a place that the browsers of others need: so after a few attempts in a row without an
answer, only one at a time tries whether it is back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio
from attrs import define, field

from relay.concurrency.backoff import pause_after
from relay.logs.throttle import ThrottledWarning

MAX_UNANSWERED = 4
"""Attempts in a row without an answer."""
MAX_SLOW_PLACES, SLOW_AFTER = 32, 1.0
"""Attempts to one service at a time, while one of them takes longer than so many seconds."""
SLOW_PAUSE = 2.0
FIRST_SERVICE_PAUSE, MAX_SERVICE_PAUSE = 10.0, 300.0
"""Seconds until a service that does not answer is tried again: doubled each time."""
MAX_KNOWN_SERVICES = 1000
"""Users may name any host below those of the settings."""

log = structlog.get_logger()


@define(eq=False, repr=False)
class ServiceAttempt:
    """One attempt to send."""

    since: float
    answered: bool = False
    """Whether the service has answered, whatever it was: then it holds up nobody."""


@define(eq=False, repr=False)
class ServiceState:
    """What is known of one service."""

    unanswered: int = 0
    """In a row, since the last pause or answer."""
    pauses: int = 0
    """In a row."""
    paused_at: float = -math.inf
    tried_again_at: float = 0.0
    """By Trio's clock, as the one before."""
    running: list[ServiceAttempt] = field(factory=list)
    """The oldest first."""


@define(eq=False, repr=False)
class ServiceHealth:
    """Counts attempts without an answer, for each host."""

    _services: dict[str, ServiceState] = field(factory=dict)
    _warning: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("a push service does not answer")
    )

    def wait(self, host: str) -> float | None:
        """Seconds for which nothing should be sent to a host; None: send."""
        state, now = self._services.get(host), trio.current_time()
        if state is None:
            return None
        if state.pauses and now < state.tried_again_at:
            return state.tried_again_at - now
        oldest = state.running[0].since if state.running else now
        if len(state.running) >= MAX_SLOW_PLACES and now - oldest > SLOW_AFTER:
            return SLOW_PAUSE
        return None

    @contextmanager
    def attempt(self, host: str) -> Iterator[ServiceAttempt]:
        """Note what becomes of an attempt within the block."""
        state = self._services.setdefault(host, ServiceState())
        attempt = ServiceAttempt(trio.current_time())
        if state.pauses:  # it tries for all
            state.tried_again_at = attempt.since + _pause_of(state)
        state.running.append(attempt)
        try:
            yield attempt
        finally:
            state.running.remove(attempt)
        # Not where relay stops, or after a bug: that says nothing.
        self._note(host, state, attempt)

    def _note(self, host: str, state: ServiceState, attempt: ServiceAttempt) -> None:
        if attempt.answered:
            if state.pauses:
                log.info("push service answers again", service=host)
            state.unanswered = state.pauses = 0
            if not state.running:
                self._services.pop(host, None)  # nothing is known against it
            return
        if attempt.since < state.paused_at:
            return  # it began beside those that the pause is for
        state.unanswered += 1
        if state.pauses or state.unanswered >= MAX_UNANSWERED:
            self._pause(host, state)
        while len(self._services) > MAX_KNOWN_SERVICES:
            del self._services[next(iter(self._services))]

    def _pause(self, host: str, state: ServiceState) -> None:
        if not state.pauses:
            self._warning.warn(host)
        now = trio.current_time()
        state.tried_again_at, state.paused_at = now + _pause_of(state), now
        state.pauses += 1
        state.unanswered = 0


def _pause_of(state: ServiceState) -> float:
    return pause_after(state.pauses, first=FIRST_SERVICE_PAUSE, longest=MAX_SERVICE_PAUSE)
