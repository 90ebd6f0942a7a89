"""The table of who did what: written by the batch, read by people, pruned. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import structlog
from attrs import define, field, fields, frozen

from relay.postgres.database import Connection, Database

LONGEST = 256
"""Characters of a value."""

COLUMNS = (
    "event_id, at, what, outcome, reason, address, user_id, service, session_id, stream_id,"
    " connection"
)

# A batch whose commit went unheard is written again: what is there already stays as it is.
INSERT = (
    f"insert into relay.audit ({COLUMNS}) select {COLUMNS}"  # noqa: S608 - constants
    " from unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])"
    f" with ordinality as given ({COLUMNS}, place)"
    " order by place on conflict (event_id) do nothing"
)

READ = (
    f"select {COLUMNS} from relay.audit"  # noqa: S608 - constants
    " where (%(who)s::text is null or user_id = %(who)s or service = %(who)s)"
    " and (%(what)s::text is null or what = %(what)s)"
    " and (%(since)s::interval is null or at > now() - %(since)s::interval)"
    " order by audit_id desc limit %(limit)s"
)

# Relays that share a database prune it together, and do not wait for one another.
PRUNE = (
    "delete from relay.audit where audit_id = any(array("
    "select audit_id from relay.audit where at < now() - %s order by at limit %s"
    " for update skip locked))"
)

log = structlog.get_logger()


def _plain(text: str) -> str:
    """Fit for a column, a line of a log, and a terminal."""
    text = text[:LONGEST]
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def _plain_or_none(text: str | None) -> str | None:
    return None if text is None else _plain(text)


@frozen(kw_only=True)
class AuditEvent:
    """Something that somebody did, or that was done to them. No value of it is a token."""

    event_id: UUID = field(factory=uuid4)
    at: datetime = field(factory=lambda: datetime.now(UTC))
    what: str = field(converter=_plain)
    outcome: str = field(converter=_plain)
    reason: str = field(default="", converter=_plain)
    address: str = field(default="", converter=_plain)
    user_id: str | None = field(default=None, converter=_plain_or_none)
    service: str | None = field(default=None, converter=_plain_or_none)
    """The name of a program with a service token."""
    session_id: str | None = field(default=None, converter=_plain_or_none)
    stream_id: str | None = field(default=None, converter=_plain_or_none)
    connection: int | None = None
    """Its number in the log of the relay."""

    def about(self) -> dict[str, str | int]:
        """All that is known of it, beside what it was and when."""
        values = {name: getattr(self, name) for name in _ABOUT}
        return {name: value for name, value in values.items() if value not in {None, ""}}


_ALL = tuple(each.name for each in fields(AuditEvent))
_ABOUT = _ALL[3:]


@define(eq=False)
class AuditTable:
    """The rows of `relay.audit`."""

    _database: Database

    async def write(self, events: Sequence[AuditEvent]) -> None:
        """Add events in their order, in one statement."""
        await self._database.transact(lambda connection: _insert(connection, events))

    async def read(
        self,
        *,
        who: str | None = None,
        what: str | None = None,
        since: timedelta | None = None,
        limit: int = 100,
    ) -> list[AuditEvent]:
        """The newest events in the order of writing; `who` is a user's id or a service's name."""
        given = {"who": _plain_or_none(who), "what": _plain_or_none(what)}

        def select(connection: Connection) -> list[AuditEvent]:
            rows = connection.execute(READ, {**given, "since": since, "limit": limit})
            return [_read(row) for row in rows][::-1]

        return await self._database.transact(select)

    async def prune(self, older_than: timedelta, *, most: int) -> int:
        """Forget the oldest events, so many at most; returns how many those were."""
        return await self._database.transact(
            lambda connection: connection.execute(PRUNE, [older_than, most]).rowcount
        )


def record_change(
    connection: Connection,
    what: str,
    *,
    reason: str = "",
    user_id: str | None = None,
    service: str | None = None,
    stream_id: str | None = None,
) -> None:
    """Record what a command changes, in the transaction that changes it: both or neither."""
    event = AuditEvent(
        what=what,
        outcome="succeeded",
        reason=reason,
        address=COMMAND_LINE,
        user_id=user_id,
        service=service,
        stream_id=stream_id,
    )
    _insert(connection, [event])
    log.info(event.what, **event.about())


COMMAND_LINE = "command line"
"""Where a change came from that nobody connected for."""


def _insert(connection: Connection, events: Sequence[AuditEvent]) -> None:
    columns = ([getattr(event, name) for event in events] for name in _ALL)
    connection.execute(INSERT, list(columns))


def _read(row: tuple[Any, ...]) -> AuditEvent:
    return AuditEvent(**dict(zip(_ALL, row, strict=True)))
