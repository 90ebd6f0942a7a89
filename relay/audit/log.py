"""The audit log: a line of the log at once, and a row of `relay.audit` soon after.

`record` never waits and never fails, so a connection may call it anywhere. The supervised task
behind it writes many rows with one statement; while Postgres is away it keeps a bounded number of
events, and says how many there was no room for.

Clients can cause any number of events. Their repetitions become one line and one row a minute
(`repetitions.py`), and events of anonymous clients may take half of the room, so that a flood of
them does not push out the others.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import NoReturn, Protocol, TypedDict

import structlog
import trio
from attrs import define, evolve, field

from relay.audit.repetitions import Repetitions
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.errors import StoreRejects, StoreUnavailable
from relay.logs.setup import REDACTED
from relay.model.access.identity import Identity, User
from relay.model.audit_event import AuditEvent

MAX_WAITING_EVENTS = 10_000
"""Events that may wait for Postgres."""
MAX_WAITING_ANONYMOUS = MAX_WAITING_EVENTS // 2
"""Of these, events of clients that are not authenticated."""
REPORT_MISSING_BELOW = MAX_WAITING_EVENTS // 4
"""When no more events wait than this, a row says how many are missing."""
REPETITION_INTERVAL = 60.0
"""Seconds after which repetitions become a line and a row."""
AUDIT_BATCH = 200
"""Events in one statement. More are no faster, and keep the other threads waiting longer."""
AUDIT_LINGER = 0.25
"""Seconds in which events gather, so that a storm of them is few statements. The events of this
time are lost when relay is killed."""
AUDIT_RETRY_INTERVAL = 1.0
"""Seconds between attempts while the store is away."""
AUDIT_FLUSH_TIMEOUT = 3.0
"""Seconds to write the waiting events when relay stops."""
PRUNE_INTERVAL = 3600.0
PRUNE_BATCH = 1000
MIN_SECRET_LENGTH = 16
"""Characters of a part of a token that could be a token itself, as in a signed one."""

log = structlog.get_logger("relay.audit")


class AuditSubject(TypedDict):
    """The user or service of an event, as arguments of `AuditLog.record`."""

    user_id: str | None
    session_id: str | None
    service: str | None


def subject_of(identity: Identity | None) -> AuditSubject:
    """The arguments of `AuditLog.record` for an identity."""
    if isinstance(identity, User):
        return AuditSubject(user_id=identity.user_id, session_id=identity.session_id, service=None)
    name = None if identity is None else identity.name
    return AuditSubject(user_id=None, session_id=None, service=name)


def unless_token(stream_id: str | None, token: str | None) -> str | None:
    """A stream id, or `REDACTED` if it holds a token: some clients confuse the two fields."""
    if not (stream_id and token):
        return stream_id
    is_part_of_token = len(stream_id) >= MIN_SECRET_LENGTH and stream_id in token
    return REDACTED if token in stream_id or is_part_of_token else stream_id


class AuditStore(Protocol):
    """The table of the audit; `StoreUnavailable` while it is away, `StoreRejects` for an event that
    it cannot hold."""

    async def write(self, events: list[AuditEvent]) -> None:
        """Add events, in their order, that are not there yet."""

    async def prune(self, older_than: timedelta, *, most: int) -> int:
        """Remove the oldest events, at most `most`; returns how many."""


@define(eq=False, repr=False)
class AuditLog:
    """Takes events from everywhere, and as a supervised task writes them to a table."""

    _store: AuditStore | None
    """None: write lines of the log only."""
    _kept_for: timedelta = timedelta(days=90)
    _node: str | None = None
    """This node, in a cluster."""
    written: int = 0
    """Events that became rows."""
    dropped: int = 0
    """Events that became none."""
    progress: Progress = field(init=False, factory=Progress)
    _waiting: deque[AuditEvent] = field(factory=deque)
    _batch: list[AuditEvent] = field(factory=list)
    """The events that are being written. When an attempt fails they may be stored already."""
    _anonymous: int = 0
    """Anonymous events in both."""
    _repetitions: Repetitions = field(factory=Repetitions)
    _missing: int = 0
    """Events dropped since the last row that says so."""
    _wake: Wakeup = field(factory=Wakeup)

    @property
    def waiting(self) -> int:
        """Events that are not written yet."""
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
        if not self._repetitions.count(event):
            self._write_down(event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and prune until cancelled, then write the rest within `AUDIT_FLUSH_TIMEOUT`.

        Without a table only repetitions are summed up.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_summing_up)
            if self._store is not None:
                nursery.start_soon(self._keep_writing, self._store)
                nursery.start_soon(self._keep_pruning, self._store)
            task_status.started()

    def _enqueue(self, event: AuditEvent) -> None:
        full = self.waiting >= MAX_WAITING_EVENTS
        if full or (event.is_anonymous and self._anonymous >= MAX_WAITING_ANONYMOUS):
            if not self._missing:
                most = MAX_WAITING_EVENTS if full else MAX_WAITING_ANONYMOUS
                log.warning("audit rows are dropped: too many wait for the database", most=most)
            self._missing += 1
            self.dropped += 1
            return
        self._anonymous += event.is_anonymous
        self._waiting.append(event)
        self._wake.set()

    def _write_down(self, event: AuditEvent) -> None:
        event = self._of_node(event)
        log.info(event.what, **event.details())
        if self._store is not None:
            self._enqueue(event)

    def _of_node(self, event: AuditEvent) -> AuditEvent:
        return event if self._node is None else evolve(event, node=self._node)

    def _sum_up(self) -> None:
        for event in self._repetitions.take():
            self._write_down(event)

    async def _keep_summing_up(self) -> NoReturn:
        try:
            while True:
                await trio.sleep(REPETITION_INTERVAL)
                self._sum_up()
        finally:
            self._sum_up()

    async def _keep_writing(self, store: AuditStore) -> None:
        try:
            while True:
                while not self.waiting:
                    await self._wake.wait()
                if self.waiting < AUDIT_BATCH:
                    await trio.sleep(AUDIT_LINGER)
                await self._write_batch(store)
        except trio.Cancelled:
            self._sum_up()
            with trio.move_on_after(AUDIT_FLUSH_TIMEOUT, shield=True):
                while self.waiting:
                    await self._write_batch(store)
            if self.waiting:
                log.warning(
                    "audit rows are lost: the database did not take them", lost=self.waiting
                )
                self.dropped += self.waiting
            raise

    async def _write_batch(self, store: AuditStore) -> None:
        if not self._batch:
            size = min(AUDIT_BATCH, len(self._waiting))
            self._batch = [self._waiting.popleft() for _ in range(size)]
        try:
            await self._write_possible(store, self._batch)
        except StoreUnavailable:
            await trio.sleep(AUDIT_RETRY_INTERVAL)
            return
        except Exception:  # a batch that cannot be written must not hold up those behind it
            self._missing += len(self._batch)
            self.dropped += len(self._batch)
            self._end_batch()
            raise
        self.written += len(self._batch)
        self._end_batch()
        if self._missing and self.waiting <= REPORT_MISSING_BELOW:
            self._report_missing()

    async def _write_possible(self, store: AuditStore, events: list[AuditEvent]) -> None:
        """Write events; where the store rejects one, the others all the same, and that one in
        ASCII. What was written is written again when this fails, which the store ignores."""
        try:
            with self.progress:
                await store.write(events)
        except StoreRejects:
            if len(events) > 1:
                middle = len(events) // 2
                await self._write_possible(store, events[:middle])
                await self._write_possible(store, events[middle:])
                return
            (event,) = events
            plain = event.in_ascii()
            if plain == event:
                log.warning("an audit row is dropped: the database rejects it")
                return
            await self._write_possible(store, [plain])

    def _end_batch(self) -> None:
        self._anonymous -= sum(event.is_anonymous for event in self._batch)
        self._batch = []

    def _report_missing(self) -> None:
        reason = f"{self._missing} earlier events are missing"
        event = self._of_node(AuditEvent(what="audit", outcome="incomplete", reason=reason))
        self._missing = 0
        log.warning(event.what, **event.details())
        self._anonymous += event.is_anonymous
        self._waiting.append(event)

    async def _keep_pruning(self, store: AuditStore) -> NoReturn:
        while True:
            try:
                while await store.prune(self._kept_for, most=PRUNE_BATCH) == PRUNE_BATCH:
                    pass  # each is a transaction of its own, and none long
            except StoreUnavailable:
                pass  # there is no hurry
            await trio.sleep(PRUNE_INTERVAL)
