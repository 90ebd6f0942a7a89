"""The table of the audit: written in batches, read by people, pruned."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from attrs import define

from relay.model.access.operator import Operator
from relay.model.audit_event import EVENT_FIELDS, AuditEvent, plain_or_none
from relay.postgres.database import Connection, Database

AUDIT_COLUMNS = (
    "event_id, at, what, outcome, reason, address, user_id, service, session_id, stream_id,"
    " connection, node"
)

# A batch is written again when the answer to its commit was lost; rows that exist stay.
INSERT_EVENTS = (
    f"insert into relay.audit ({AUDIT_COLUMNS}) select {AUDIT_COLUMNS}"  # noqa: S608 - constants
    " from unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[])"
    f" with ordinality as given ({AUDIT_COLUMNS}, place)"
    " order by place on conflict (event_id) do nothing"
)

READ_EVENTS = (
    f"select {AUDIT_COLUMNS} from relay.audit"  # noqa: S608 - constants
    " where (%(who)s::text is null or user_id = %(who)s or service = %(who)s)"
    " and (%(what)s::text is null or what = %(what)s)"
    " and (%(since)s::interval is null or at > now() - %(since)s::interval)"
    " order by audit_id desc limit %(limit)s"
)

# Relays that share a database prune it together, without waiting for each other.
PRUNE_EVENTS = (
    "delete from relay.audit where audit_id = any(array("
    "select audit_id from relay.audit where at < now() - %s order by at limit %s"
    " for update skip locked))"
)

log = structlog.get_logger()


@define(eq=False, repr=False)
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
        given = {"who": plain_or_none(who), "what": plain_or_none(what)}

        def select(connection: Connection) -> list[AuditEvent]:
            rows = connection.execute(READ_EVENTS, {**given, "since": since, "limit": limit})
            return [_read(row) for row in rows][::-1]

        return await self._database.transact(select)

    async def prune(self, older_than: timedelta, *, most: int) -> int:
        """Remove the oldest events, at most `most`; returns how many."""
        return await self._database.transact(
            lambda connection: connection.execute(PRUNE_EVENTS, [older_than, most]).rowcount
        )


def record_change(
    connection: Connection,
    what: str,
    *,
    outcome: str = "succeeded",
    reason: str = "",
    user_id: str | None = None,
    service: str | None = None,
    stream_id: str | None = None,
    connection_number: int | None = None,
    node: str | None = None,
    by: Operator | None = None,
) -> None:
    """Record what an operator changes, by default with a command, in the same transaction."""
    event = AuditEvent(
        what=what,
        outcome=outcome,
        reason=reason,
        address=COMMAND_LINE if by is None else by.address,
        user_id=user_id,
        service=service if by is None else by.service,
        stream_id=stream_id,
        connection=connection_number,
        node=node,
    )
    _insert(connection, [event])
    log.info(event.what, **event.details())


COMMAND_LINE = "command line"
"""The address of an event that no connection caused."""


def _insert(connection: Connection, events: Sequence[AuditEvent]) -> None:
    columns = ([getattr(event, name) for event in events] for name in EVENT_FIELDS)
    connection.execute(INSERT_EVENTS, list(columns))


def _read(row: tuple[Any, ...]) -> AuditEvent:
    return AuditEvent(**dict(zip(EVENT_FIELDS, row, strict=True)))
