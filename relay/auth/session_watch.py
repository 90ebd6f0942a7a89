"""Applies changes of sessions and permissions to live connections.

A supervised task. If database triggers notify it of changes, it rereads what each change concerns,
and everyone once in a while; without triggers it polls everyone, in one query. Whenever it may have
missed a change (it failed, or lost the database or the listening connection), it rereads everyone.
While the database is unavailable, connections stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

import structlog
import trio
from attrs import define, evolve, field

from relay.auth.application_watch import ApplicationWatch
from relay.auth.registry import Registry, WatchedConnection
from relay.concurrency.activity import Activity
from relay.concurrency.backoff import Backoff
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.model.access.change import EVERYTHING, Change
from relay.model.access.identity import Identity, Service, User

SAFETY_INTERVAL = 15.0
"""Seconds between rereads of everyone while changes are notified, and between probes of whether
notifications still arrive."""
IDLE_AFTER = 15.0
"""Seconds after the last connection until the database is left alone."""
LISTEN_RETRY_INTERVAL = 1.0
"""Seconds between attempts to listen, or to read, while they fail."""
REREAD_TIMEOUT = 5.0
"""Seconds that a connection waits for its session to be reread."""
MAX_SESSIONS_PER_QUERY = 5000
"""Connections whose sessions are read with one query."""

log = structlog.get_logger()


class SessionTable(Protocol):
    """Sessions, and the grants of users."""

    async def read(self, session_ids: Sequence[str]) -> Mapping[str, User]:
        """The current state of sessions, by id, without those that are gone; `StoreUnavailable`."""

    async def granted_to(self, user_ids: Sequence[str]) -> Mapping[str, frozenset[str]]:
        """The streams of others that each user may watch, without banned users;
        `StoreUnavailable`."""


class ServiceTable(Protocol):
    """Services, and the hashes of their tokens."""

    async def read(self, token_hashes: Sequence[bytes]) -> Mapping[bytes, Service]:
        """The current state of services, by token hash, without those that are gone;
        `StoreUnavailable`."""


class LinkRows(Protocol):
    """Links, and their makers."""

    async def read(self, link_ids: Sequence[str]) -> Mapping[str, User]:
        """The current state of the makers, by the ids of links, without links that are not valid
        any more; `StoreUnavailable`."""


class ChangeListener(Protocol):
    """A connection that receives notifications."""

    async def receive(self) -> list[Change]:
        """Wait for the next changes; `StoreUnavailable` if no more will arrive."""

    async def probe(self) -> bool:
        """Whether notifications arrive at all."""


class ChangeFeed(Protocol):
    """Notifies listeners of changes."""

    def listen(self) -> AbstractAsyncContextManager[ChangeListener]:
        """Receive changes from now on; `StoreUnavailable` if that is not possible."""


class ChangeTriggers(Protocol):
    """The database triggers that notify of changes."""

    async def installed(self) -> bool:
        """Whether changes of users and sessions are notified."""


@define(eq=False, repr=False)
class SessionWatch:
    """Rereads live sessions and services, and tells their connections what has changed."""

    registry: Registry
    _sessions: SessionTable
    _services: ServiceTable
    _changes: ChangeFeed
    _triggers: ChangeTriggers
    _poll_interval: float
    """Seconds."""
    _forget: Callable[[Change], object] = field(default=lambda _change: None)
    """Drops what is cached about the users and sessions that a change concerns."""
    _application: ApplicationWatch | None = None
    """Watches the sessions outside the database."""
    _activity: Activity = field(factory=Activity)
    """Told whether anybody is connected."""
    _on_change: Callable[[Change], object] = field(default=lambda _change: None)
    """Told of each change, and that anything may have changed whenever everyone is read."""
    _links: LinkRows | None = None
    progress: Progress = field(init=False, factory=Progress)
    _notified: bool = False
    """Whether all changes are notified, so that polling is not needed."""
    _pending: dict[WatchedConnection, None] = field(factory=dict)
    """To be reread."""
    _probed: bool = False
    """Whether the listening connection has passed a probe."""
    _mode: str = ""
    """The mode last logged: `polling` or `notifications`."""
    _wake: Wakeup = field(factory=Wakeup)
    _left_at: float = float("-inf")
    """When a connection left, or the task began."""
    _read: trio.Event = field(factory=trio.Event)
    """Set when the pending ones have been read."""
    _read_all_at: float = float("-inf")

    # -- for connections

    def enter(self, live: WatchedConnection) -> None:
        """Watch a connection under its current identity."""
        if not self.registry:  # the task sleeps while there is nobody
            self._wake.set()
        self.registry.enter(live)
        if self._application is not None:
            self._application.enter(live.identity)
        self._activity.note(active=True)

    def leave(self, live: WatchedConnection) -> None:
        self.registry.leave(live)
        self._activity.note(active=bool(self.registry))
        self._left_at = trio.current_time()
        self._pending.pop(live, None)

    async def reread(self, live: WatchedConnection) -> None:
        """Reread a connection's session now, with all that are pending. Gives up after a while."""
        self._pending[live] = None
        self._wake.set()
        read = self._read
        with trio.move_on_after(REREAD_TIMEOUT):
            if self._application is not None:
                await self._application.reread(live)
            await read.wait()

    # -- the task

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        self._notified = False
        self._left_at = trio.current_time()
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
                self._on_change(EVERYTHING)
                self._read_all_at = trio.current_time()
            done, self._read = self._read, trio.Event()
            pause = 0.0
            try:
                await self._read_again()
            except StoreUnavailable:
                self._read_all_at, pause = float("-inf"), LISTEN_RETRY_INTERVAL
            finally:
                done.set()
            await trio.sleep(pause)

    async def _until_due(self) -> None:
        """Wait until something has to be reread."""
        while not self._pending and trio.current_time() < self._due():
            with trio.move_on_at(self._due()):
                await self._wake.wait()

    def _due(self) -> float:
        """The time when everyone has to be reread."""
        if not self.registry:
            return float("inf")
        return self._read_all_at + (SAFETY_INTERVAL if self._notified else self._poll_interval)

    async def _read_again(self) -> None:
        # A connection that renews itself during the query has a newer identity than its result.
        before = [(live, live.identity) for live in self._pending]
        self._pending = {}
        for start in range(0, len(before), MAX_SESSIONS_PER_QUERY):
            some = before[start : start + MAX_SESSIONS_PER_QUERY]
            now = await self._read_possible([identity for _, identity in some])
            for (live, identity), found in zip(some, now, strict=True):
                if live not in self.registry:
                    continue  # it has left
                if live.identity is not identity:
                    self._pending[live] = None
                elif found is None:
                    live.revoked()
                elif found != identity:
                    live.become(_of_same_token(identity, found))

    async def _read_possible(self, known: Sequence[Identity]) -> list[Identity | None]:
        """`_read_identities`, and None for those that the database cannot return."""
        try:
            with self.progress:
                return await self._read_identities(known)
        except StoreRejects:
            if len(known) == 1:
                log.warning("a session cannot be read, so its connections end")
                return [None]
        middle = len(known) // 2
        return [
            *await self._read_possible(known[:middle]),
            *await self._read_possible(known[middle:]),
        ]

    async def _read_identities(self, known: Sequence[Identity]) -> list[Identity | None]:
        """The current state of each, in order. One query per kind of identity."""
        users = [each for each in known if isinstance(each, User)]
        sessions = {each.session_id for each in users if each.source == "session"}
        others = {each.user_id for each in users if each.source not in {"session", "link"}}
        links = {each.link.link_id for each in users if each.link is not None}
        hashes = {each.token_hash for each in known if isinstance(each, Service)}
        found = await self._sessions.read([*sessions]) if sessions else {}
        granted = await self._sessions.granted_to([*others]) if others else {}
        services = await self._services.read([*hashes]) if hashes else {}
        makers = await self._links.read([*links]) if links and self._links else {}

        def now(identity: Identity) -> Identity | None:
            if isinstance(identity, Service):
                return services.get(identity.token_hash)
            if identity.link is not None:
                return makers.get(identity.link.link_id)
            if identity.source != "session":
                grants = granted.get(identity.user_id)
                return None if grants is None else evolve(identity, granted=grants)
            user = found.get(identity.session_id)
            return None if user is None or _is_over(identity, user) else user

        return [now(identity) for identity in known]

    async def _keep_listening(self) -> NoReturn:
        backoff = Backoff(LISTEN_RETRY_INTERVAL, SAFETY_INTERVAL)
        while True:
            self._probed = False
            try:
                await self._listen()
            except* StoreUnavailable:
                pass
            self._notified = False
            self._log_mode("polling", "the connection that listens was lost or cannot be made")
            self._note(EVERYTHING)
            if self._probed:
                backoff.reset()
            await trio.sleep(backoff.next())
            await self._rest_if_idle()

    async def _listen(self) -> None:
        async with self._changes.listen() as listener, trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_probing, listener)
            while True:
                for change in await listener.receive():
                    self._note(change)

    async def _keep_probing(self, listener: ChangeListener) -> NoReturn:
        """Probe whether notifications arrive; `StoreUnavailable` if they do not."""
        while True:
            if not await listener.probe():
                self._log_mode(
                    "polling", "notifications do not arrive; listen_url leads past PgBouncer"
                )
                raise StoreUnavailable
            self._probed = True
            notified = await self._triggers.installed()
            if notified and not self._notified:
                self._log_mode("notifications", "the triggers are there")
                # Changes before this were not notified.
                self._note(EVERYTHING)
            elif not notified:
                self._log_mode(
                    "polling", "there is no trigger; `relay db migrate --watch-sessions`"
                )
            self._notified = notified
            self._wake.set()
            await trio.sleep(SAFETY_INTERVAL)
            await self._rest_if_idle()

    async def _rest_if_idle(self) -> None:
        """Ask the database nothing for a while, or until somebody connects, unless somebody was
        connected a moment ago."""
        if self.registry or trio.current_time() < self._left_at + IDLE_AFTER:
            return
        # Whether notifications arrive is unknown until the next probe.
        self._notified = False
        await self._activity.rest()

    def _log_mode(self, mode: str, why: str) -> None:
        """Log how sessions are watched, when that changes."""
        if mode != self._mode:
            self._mode = mode
            log.info("sessions are watched", by=mode, why=why)

    def _note(self, change: Change) -> None:
        self._on_change(change)
        if change.kind in {"stream", "operator"}:
            return
        self._forget(change)
        self.registry.note(change)
        self._note_live(change)

    def _note_live(self, change: Change) -> None:
        for live in self.registry.concerned(change):
            self._pending[live] = None
        if self._pending:
            self._wake.set()


def _of_same_token(known: Identity, now: Identity) -> Identity:
    if isinstance(known, User) and isinstance(now, User):
        return evolve(now, token_hash=known.token_hash)
    return now


def _is_over(known: User, now: User) -> bool:
    """Whether a session was cut short or is now another user's. Expiry is not meant: the connection
    has a deadline for it."""
    cut_short = now.expires_at < known.expires_at and (now.remaining or 0.0) <= 0
    return cut_short or now.user_id != known.user_id
