"""Asks the application again about the sessions of live connections.

A supervised task. Nothing tells relay of the end of a session that is not a row, so it asks at an
interval. While the application does not answer, connections stay as they are, until their sessions
expire.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol

import trio
from attrs import define, evolve, field

from relay.auth.registry import Registry, WatchedConnection
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreUnavailable
from relay.model.access.change import Change
from relay.model.access.identity import Identity, User

MAX_AT_ONCE = 8
"""Questions to the application at a time."""
ROUNDS_PER_INTERVAL = 20
MIN_ROUND_INTERVAL = 0.05
"""Seconds."""
RETRY_INTERVAL = 5.0
"""Seconds until the next request after several went unanswered."""
EARLIEST, LATEST = 0.7, 0.95
"""The part of the interval after which a session is due, and a round may come a little later. Many
sessions that began together do not stay together."""


CLOCK_SKEW = timedelta(seconds=5)
"""A session that ends so soon may have expired by the clock of the application. Its connections end
with it, and are not told that it was revoked."""


class AskAgain(Protocol):
    """Asks about sessions, as `relay.auth.methods.application` does."""

    async def ask_again(self, user: User) -> User | None:
        """The session as it is now; None if it has ended, `StoreUnavailable`."""


@define(eq=False, repr=False)
class ApplicationWatch:
    """Asks about each live session once in an interval, and tells its connections."""

    _registry: Registry
    _application: AskAgain
    _interval: float
    """Seconds."""
    _random: Callable[[float, float], float] = random.uniform
    _due: dict[str, float] = field(factory=dict)
    """When to ask about each session next, by its id and Trio's clock."""
    _entered: Wakeup = field(factory=Wakeup)
    _failures: int = 0
    """Questions in a row without an answer."""

    def enter(self, identity: Identity) -> None:
        """Watch the session of a connection that is in the registry."""
        if isinstance(identity, User) and identity.source == "application":
            if identity.session_id not in self._due:
                self._due[identity.session_id] = self._next()
            self._entered.set()

    async def reread(self, live: WatchedConnection) -> None:
        """Ask about the session of a connection now, if it is one of the application's."""
        identity = live.identity
        if isinstance(identity, User) and identity.source == "application":
            await self._ask(identity.session_id)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        task_status.started()
        while True:
            while not self._due:
                await self._entered.wait()
            await trio.sleep(max(self._interval / ROUNDS_PER_INTERVAL, MIN_ROUND_INTERVAL))
            now = trio.current_time()
            due = iter([session_id for session_id, at in self._due.items() if at <= now])
            self._failures = 0
            async with trio.open_nursery() as nursery:
                for _ in range(MAX_AT_ONCE):
                    nursery.start_soon(self._ask_each, due)
            if self._failures >= MAX_AT_ONCE:
                await trio.sleep(RETRY_INTERVAL)

    async def _ask_each(self, session_ids: Iterator[str]) -> None:
        for session_id in session_ids:
            if self._failures >= MAX_AT_ONCE:
                return
            await self._ask(session_id)

    async def _ask(self, session_id: str) -> None:
        asked = next(self._lives(session_id), None)
        if asked is None:
            self._due.pop(session_id, None)
            return
        self._due[session_id] = self._next()
        before, known = self._registry.mark(), asked.identity
        assert isinstance(known, User)
        try:
            now = await self._application.ask_again(known)
        except StoreUnavailable:
            self._failures += 1
            return
        self._failures = 0
        for live in [*self._lives(session_id)]:
            identity = live.identity
            if now is None:
                if known.expires_at > datetime.now(UTC) + CLOCK_SKEW:
                    live.revoked()
            elif (now.session_id, now.user_id) != (session_id, known.user_id):
                live.revoked()
            elif self._registry.still_holds(now, before):
                assert isinstance(identity, User)
                found = evolve(now, granted=identity.granted, token=identity.token)
                if found != identity:
                    live.become(found)

    def _lives(self, session_id: str) -> Iterator[WatchedConnection]:
        """The live connections with this session of the application."""
        for live in self._registry.concerned(Change("session", session_id)):
            identity = live.identity
            if isinstance(identity, User) and identity.source == "application":
                yield live

    def _next(self) -> float:
        return trio.current_time() + self._interval * self._random(EARLIEST, LATEST)
