"""Keeps live connections to what their sessions and permissions are now. Floor 2.

A supervised service. Where triggers tell of each change, it reads again whom the change concerns,
and everybody only now and then; where not, it reads everybody every half second, in one query. When
it may have missed something, because the connection that listens or the database was lost or the
service itself failed, it reads everybody again. While the database is away nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, evolve, field

from relay.auth.registry import Live, Registry
from relay.errors import StoreUnavailable
from relay.model import Identity, Service, User
from relay.postgres.changes import EVERYTHING, Change
from relay.turns import Turn

SAFETY = 15.0
"""Seconds between readings of everybody where changes are told of, and between trials whether that
still works."""
RETRY = 1.0
"""Seconds between attempts to listen, or to read, while that fails."""
LOOK_PATIENCE = 5.0
"""Seconds in which a connection waits for its session to be read again."""
MOST_AT_ONCE = 5000
"""Sessions in one query."""

log = structlog.get_logger()


class Sessions(Protocol):
    async def read(self, session_ids: Sequence[str]) -> Mapping[str, User]:
        """The sessions as they are now, without those that are no more."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """What each user may watch of others' streams, without the users that are banned."""


class Tokens(Protocol):
    async def read(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Service]:
        """The services as they are now, without those that are no more."""


class Ear(Protocol):
    async def hear(self) -> list[Change]:
        """Wait for the next changes; `StoreUnavailable` when no more will be heard."""

    async def hears(self) -> bool:
        """Whether changes are heard at all."""


class Changes(Protocol):
    def listen(self) -> AbstractAsyncContextManager[Ear]:
        """Hear of changes from now on; `StoreUnavailable` when that is not possible."""


class Triggers(Protocol):
    async def installed(self) -> bool:
        """Whether changes of users and sessions are told of."""


@define(eq=False)
class SessionWatch:
    """Reads live sessions and services again, and tells their connections what has changed."""

    registry: Registry
    _sessions: Sessions
    _tokens: Tokens
    _changes: Changes
    _triggers: Triggers
    _poll_interval: float
    """Seconds."""
    _forget: Callable[[Change], object] = field(default=lambda _change: None)
    """Drops what is remembered of whom a change concerns."""
    turn: Turn = field(init=False, factory=Turn)
    _told: bool = False
    """Whether all changes are told of."""
    _pending: dict[Live, None] = field(factory=dict)
    """To be read again."""
    _heard: bool = False
    """Whether this connection has heard anything."""
    _said: str = ""
    _wake: trio.Event = field(factory=trio.Event)
    _read: trio.Event = field(factory=trio.Event)
    """Set when those have been read that are pending now."""
    _read_all_at: float = float("-inf")

    # -- for connections

    def enter(self, live: Live) -> None:
        """Watch a connection from now on, by its identity."""
        self.registry.enter(live)
        self._wake.set()

    def leave(self, live: Live) -> None:
        self.registry.leave(live)
        self._pending.pop(live, None)

    async def look(self, live: Live) -> None:
        """Read one again now, with others; gives up when that takes long."""
        self._pending[live] = None
        self._wake.set()
        with trio.move_on_after(LOOK_PATIENCE):
            await self._read.wait()

    # -- the service

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._told = False
        self._note(EVERYTHING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_listening)
            task_status.started()
            await self._keep_reading()

    async def _keep_reading(self) -> NoReturn:
        while True:
            await self._until_due()
            if trio.current_time() >= self._due():
                self._note_live(EVERYTHING)
                self._read_all_at = trio.current_time()
            done, self._read = self._read, trio.Event()
            pause = 0.0
            try:
                await self._read_again()
            except StoreUnavailable:
                self._read_all_at, pause = float("-inf"), RETRY
            finally:
                done.set()
            await trio.sleep(pause)

    async def _until_due(self) -> None:
        """Wait until somebody has to be read again."""
        while not self._pending and trio.current_time() < self._due():
            self._wake = trio.Event()
            with trio.move_on_at(self._due()):
                await self._wake.wait()

    def _due(self) -> float:
        """When everybody is to be read again."""
        if not self.registry:
            return float("inf")
        return self._read_all_at + (SAFETY if self._told else self._poll_interval)

    async def _read_again(self) -> None:
        # A connection may have renewed itself before the answer is there, which would be older.
        before = [(live, live.identity) for live in self._pending]
        self._pending = {}
        for start in range(0, len(before), MOST_AT_ONCE):
            some = before[start : start + MOST_AT_ONCE]
            with self.turn:
                now = await self._read_identities([identity for _, identity in some])
            for (live, identity), found in zip(some, now, strict=True):
                if live not in self.registry or live.identity is not identity:
                    continue  # it has left meanwhile, or proved another
                if found is None:
                    live.revoked()
                elif found != identity:
                    live.become(found)

    async def _read_identities(self, known: Sequence[Identity]) -> list[Identity | None]:
        """What has become of each, in their order; a query for each kind that is there."""
        users = [each for each in known if isinstance(each, User)]
        sessions = {each.session_id for each in users if each.source == "session"}
        others = {each.user_id for each in users if each.source != "session"}
        hashes = {each.token_hash for each in known if isinstance(each, Service)}
        found = await self._sessions.read([*sessions]) if sessions else {}
        granted = await self._sessions.granted_to([*others]) if others else {}
        services = await self._tokens.read([*hashes]) if hashes else {}

        def now(identity: Identity) -> Identity | None:
            if isinstance(identity, Service):
                return services.get(identity.token_hash)
            if identity.source != "session":
                grants = granted.get(identity.user_id)
                return None if grants is None else evolve(identity, granted=grants)
            user = found.get(identity.session_id)
            return None if user is None or _is_over(identity, user) else user

        return [now(identity) for identity in known]

    async def _keep_listening(self) -> NoReturn:
        pause = RETRY
        while True:
            self._heard = False
            try:
                await self._listen()
            except* StoreUnavailable:
                pass
            self._told = False
            self._say("polling", "the connection that listens was lost or cannot be made")
            self._note(EVERYTHING)
            pause = RETRY if self._heard else min(2 * pause, SAFETY)
            await trio.sleep(pause)

    async def _listen(self) -> None:
        async with self._changes.listen() as ear, trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_trying, ear)
            while True:
                for change in await ear.hear():
                    self._note(change)

    async def _keep_trying(self, ear: Ear) -> NoReturn:
        """See whether changes are heard of; `StoreUnavailable` when they are not."""
        while True:
            if not await ear.hears():
                self._say("polling", "notifications do not arrive; listen_url leads past PgBouncer")
                raise StoreUnavailable
            self._heard = True
            told = await self._triggers.installed()
            if told and not self._told:
                self._say("notifications", "the triggers are there")
                # What changed before anybody listened was not heard.
                self._note(EVERYTHING)
            elif not told:
                self._say("polling", "there is no trigger; `relay db migrate --watch-sessions`")
            self._told = told
            self._wake.set()
            await trio.sleep(SAFETY)

    def _say(self, how: str, why: str) -> None:
        """Log how sessions are watched, when that changes."""
        if how != self._said:
            self._said = how
            log.info("sessions are watched", by=how, why=why)

    def _note(self, change: Change) -> None:
        self._forget(change)
        self.registry.note(change)
        self._note_live(change)

    def _note_live(self, change: Change) -> None:
        for live in self.registry.concerned(change):
            self._pending[live] = None
        if self._pending:
            self._wake.set()


def _is_over(known: User, now: User) -> bool:
    """Whether a session is no longer what it was; one that simply expires is the deadline's."""
    cut_short = now.expires_at < known.expires_at and (now.remaining or 0.0) <= 0
    return cut_short or now.user_id != known.user_id
