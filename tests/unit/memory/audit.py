"""The table of the audit log, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import trio
from attrs import define, field

from relay.errors import StoreUnavailable
from relay.model.audit_event import AuditEvent


@define(eq=False)
class MemoryAuditStore:
    """The `AuditStore`, in memory."""

    rows: list[AuditEvent] = field(factory=list)
    on_write: Callable[[Sequence[AuditEvent]], object] = field(default=lambda _events: None)
    delay: float = 0.0
    away: bool = False
    answer_lost: bool = False
    """It writes, and fails nevertheless."""
    broken: bool = False
    old: int = 0
    pruned: list[tuple[timedelta, int]] = field(factory=list)

    async def write(self, events: Sequence[AuditEvent]) -> None:
        await trio.sleep(self.delay)
        if self.away:
            raise StoreUnavailable
        if self.broken:
            raise RuntimeError("a bug in the audit")
        self.on_write(events)
        written = {row.event_id for row in self.rows}
        self.rows += [event for event in events if event.event_id not in written]
        if self.answer_lost:
            raise StoreUnavailable

    async def prune(self, older_than: timedelta, *, most: int) -> int:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable
        gone = min(most, self.old)
        self.old -= gone
        self.pruned.append((older_than, gone))
        return gone
