"""What happened at the door: a line of the log at once, a row of `relay.audit` soon after. Floor 2.

`record` is for the ways of connections: it never waits and never fails. The service behind it
writes what was recorded, many rows with one statement; while Postgres is away it keeps so many, and
says how many there was no room for.

Whoever is not authenticated can make as many events as they like. What such a one meets again and
again becomes one row a minute, and events of nobody have half of the room: nobody's flood pushes
out what others did.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import NoReturn, Protocol, TypedDict

import structlog
import trio
from attrs import define, field

from relay.closing import Ending
from relay.errors import StoreUnavailable
from relay.logs import HIDDEN
from relay.model import Identity, User
from relay.postgres.audit import AuditEvent
from relay.turns import Turn

CAPACITY = 10_000
"""Events that may wait for Postgres."""
CAPACITY_OF_STRANGERS = CAPACITY // 2
"""So many of them may be about those who are not authenticated."""
ROOM_AGAIN = CAPACITY // 4
"""When so few wait, it is said how many are missing."""
SUM_EVERY = 60.0
"""Seconds after which repetitions are a row."""
MOST_SUMS = 10_000
"""Different events of strangers whose repetitions are counted."""
AT_THE_DOOR = {
    ending.label
    for ending in (
        Ending.FORBIDDEN,
        Ending.RATE_LIMITED,
        Ending.TOO_MANY_CONNECTIONS,
        Ending.HANDSHAKE_REFUSED,
        Ending.HANDSHAKE_TIMEOUT,
        Ending.NOT_FOUND,
    )
}
"""The endings that a stranger may meet as often as they knock."""
BATCH = 200
"""Events in one statement: more are no faster, and keep the other threads waiting longer."""
LINGER = 0.25
"""Seconds in which events gather, so that a storm of them is few statements. So many are lost when
relay is killed."""
RETRY = 1.0
"""Seconds between attempts while the store is away."""
FLUSH = 3.0
"""Seconds for what still waits when relay stops."""
PRUNE_EVERY = 3600.0
PRUNE_BATCH = 1000

log = structlog.get_logger()


class Who(TypedDict):
    user_id: str | None
    session_id: str | None
    service: str | None


def who(identity: Identity | None) -> Who:
    """The one that an event is about, as `record` takes it."""
    if isinstance(identity, User):
        return Who(user_id=identity.user_id, session_id=identity.session_id, service=None)
    name = None if identity is None else identity.name
    return Who(user_id=None, session_id=None, service=name)


SHORTEST_SECRET = 16
"""Characters of a part of a token that could be a token itself, as in a signed one."""


def unless_token(stream_id: str | None, token: str | None) -> str | None:
    """A stream id, or what hides it: some clients put their fields into the wrong places."""
    if not (stream_id and token):
        return stream_id
    part_of_token = len(stream_id) >= SHORTEST_SECRET and stream_id in token
    return HIDDEN if token in stream_id or part_of_token else stream_id


class Table(Protocol):
    """Where the rows go, as `relay.postgres.audit.AuditTable`."""

    async def write(self, events: list[AuditEvent]) -> None: ...

    async def prune(self, older_than: timedelta, *, most: int) -> int: ...


@define(eq=False)
class AuditLog:
    """Takes events from everywhere, and as a supervised service writes them to a table."""

    _table: Table | None
    """None: the lines of the log are all there is."""
    _kept_for: timedelta = timedelta(days=90)
    written: int = 0
    """Events that became rows."""
    dropped: int = 0
    """Events that became none."""
    turn: Turn = field(init=False, factory=Turn)
    _waiting: deque[AuditEvent] = field(factory=deque)
    _batch: list[AuditEvent] = field(factory=list)
    """What is being written. It may be there already when an attempt fails."""
    _strangers: int = 0
    """Of both, those that are about nobody."""
    _repeated: dict[tuple[str, str, str, str], int] = field(factory=dict)
    """How often what strangers met came again, by what it was and the address."""
    _missing: int = 0
    """Dropped since there was no room, and not said yet."""
    _wake: trio.Event = field(factory=trio.Event)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._batch)

    def record(
        self,
        what: str,
        *,
        outcome: str,
        reason: str = "",
        address: str = "",
        user_id: str | None = None,
        session_id: str | None = None,
        stream_id: str | None = None,
        connection: int | None = None,
        service: str | None = None,
    ) -> None:
        """Log an event and have it written. Never waits, never raises; pass no token."""
        event = AuditEvent(
            what=what,
            outcome=outcome,
            reason=reason,
            address=address,
            user_id=user_id,
            service=service,
            session_id=session_id,
            stream_id=stream_id,
            connection=connection,
        )
        log.info(event.what, **event.about())
        if self._table is not None and not self._is_repeated(event):
            self._keep(event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and prune until cancelled, and then write the rest, within `FLUSH`."""
        assert self._table is not None, "there is nothing to write to"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, self._table)
            nursery.start_soon(self._keep_summing)
            nursery.start_soon(self._prune, self._table)
            task_status.started()

    def _is_repeated(self, event: AuditEvent) -> bool:
        """Whether it will be counted in a row of its kind; the first is a row by itself."""
        limited = (event.what, event.outcome) == ("auth", "limited")
        if not _is_of_stranger(event) or not (limited or event.reason in AT_THE_DOOR):
            return False
        kind = (event.what, event.outcome, event.reason, event.address)
        if kind in self._repeated:
            self._repeated[kind] += 1
            return True
        if len(self._repeated) < MOST_SUMS:
            self._repeated[kind] = 0
        return False

    def _sum_up(self) -> None:
        """Make rows of what came again, and forget what did not."""
        again = {kind: times for kind, times in self._repeated.items() if times}
        self._repeated = dict.fromkeys(again, 0)
        for (what, outcome, reason, address), times in again.items():
            summed = f"{reason}, {times} more".removeprefix(", ")
            self._keep(AuditEvent(what=what, outcome=outcome, reason=summed, address=address))

    async def _keep_summing(self) -> NoReturn:
        while True:
            await trio.sleep(SUM_EVERY)
            self._sum_up()

    def _keep(self, event: AuditEvent) -> None:
        of_stranger = _is_of_stranger(event)
        full = self.waiting >= CAPACITY
        if full or (of_stranger and self._strangers >= CAPACITY_OF_STRANGERS):
            if not self._missing:
                most = CAPACITY if full else CAPACITY_OF_STRANGERS
                log.warning("audit rows are dropped: too many wait for the database", most=most)
            self._missing += 1
            self.dropped += 1
            return
        self._strangers += of_stranger
        self._waiting.append(event)
        self._wake.set()

    async def _write(self, table: Table) -> None:
        try:
            while True:
                if not self.waiting:
                    self._wake = trio.Event()
                    await self._wake.wait()
                if self.waiting < BATCH:
                    await trio.sleep(LINGER)
                await self._write_batch(table)
        except trio.Cancelled:
            self._sum_up()
            with trio.move_on_after(FLUSH, shield=True):
                while self.waiting:
                    await self._write_batch(table)
            if self.waiting:
                log.warning(
                    "audit rows are lost: the database did not take them", lost=self.waiting
                )
                self.dropped += self.waiting
            raise

    async def _write_batch(self, table: Table) -> None:
        if not self._batch:
            size = min(BATCH, len(self._waiting))
            self._batch = [self._waiting.popleft() for _ in range(size)]
        try:
            with self.turn:
                await table.write(self._batch)
        except StoreUnavailable:
            await trio.sleep(RETRY)
            return
        except Exception:  # a batch that cannot be written must not hold up those behind it
            self._missing += len(self._batch)
            self.dropped += len(self._batch)
            self._end_batch()
            raise
        self.written += len(self._batch)
        self._end_batch()
        if self._missing and self.waiting <= ROOM_AGAIN:
            self._say_what_is_missing()

    def _end_batch(self) -> None:
        self._strangers -= sum(map(_is_of_stranger, self._batch))
        self._batch = []

    def _say_what_is_missing(self) -> None:
        reason = f"{self._missing} earlier events are missing"
        event = AuditEvent(what="audit", outcome="incomplete", reason=reason)
        self._missing = 0
        log.warning(event.what, **event.about())
        self._strangers += _is_of_stranger(event)
        self._waiting.append(event)

    async def _prune(self, table: Table) -> None:
        while True:
            try:
                while await table.prune(self._kept_for, most=PRUNE_BATCH) == PRUNE_BATCH:
                    pass  # each is a transaction of its own, and none long
            except StoreUnavailable:
                pass  # there is no hurry
            await trio.sleep(PRUNE_EVERY)


def _is_of_stranger(event: AuditEvent) -> bool:
    return event.user_id is None and event.service is None
