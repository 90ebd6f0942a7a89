"""The table of alerts: stored by the batch, read in the order of their commits. Floor 1."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import define, evolve

from relay.model import NewAlert, StoredAlert
from relay.postgres.text import storable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from relay.postgres.database import Connection, Database

# 'rela', in ASCII, and a number: advisory locks have numbers for names.
ALERTS_LOCK = "select pg_advisory_xact_lock(1919249505, 1)"

SELECT = (
    "select a.alert_id, a.stream_id, s.owner_id, a.sender, a.severity, a.message, a.timestamp,"
    " a.metadata, a.alert_key from relay.alerts a join relay.streams s using (stream_id) "
)

Key = tuple[str, str, str]
"""What makes an alert the same as an earlier one: stream, sender, alert key."""


@define(eq=False)
class AlertTable:
    """The alerts in `relay.alerts`."""

    _database: Database

    async def store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | None]:
        """Store a batch in one transaction; return one entry for each, in order, once committed.

        None: there is no such stream, or `as_owner` is set and is not its owner. An alert whose
        stream, sender and key are those of an earlier one is that earlier one, `fresh=False`.

        Ids are given out under a lock that is held until the transaction is committed and seen by
        others, so whoever has read up to some id has missed none below it.
        """
        if not alerts:
            return []
        batch = [_storable(alert) for alert in alerts]
        return await self._database.transact(lambda connection: _store(connection, batch))

    async def after(self, alert_id: int, *, limit: int = 500) -> list[StoredAlert]:
        """The alerts of all streams with a greater id, in order, `limit` at most."""

        def select(connection: Connection) -> list[StoredAlert]:
            rows = connection.execute(
                SELECT + "where a.alert_id > %s order by a.alert_id limit %s", [alert_id, limit]
            )
            return [_read(row) for row in rows]

        return await self._database.transact(select)

    async def latest_id(self) -> int:
        """The greatest id that is stored; 0 when there is none."""

        def select(connection: Connection) -> int:
            rows = connection.execute("select coalesce(max(alert_id), 0) from relay.alerts")
            return int(rows.fetchall()[0][0])

        return await self._database.transact(select)


def _store(connection: Connection, batch: list[NewAlert]) -> list[StoredAlert | None]:
    owners = _owners(connection, {alert.stream_id for alert in batch})
    connection.execute(ALERTS_LOCK)
    known = _known(connection, {key for alert in batch if (key := _key(alert))})
    fresh: list[StoredAlert] = []
    outcome: list[StoredAlert | None] = []
    ids = _new_ids(connection, len(batch))
    for alert in batch:
        owner_id = owners.get(alert.stream_id)
        if owner_id is None or alert.as_owner not in {None, owner_id}:
            outcome.append(None)
            continue
        key = _key(alert)
        if key is not None and key in known:
            outcome.append(evolve(known[key], fresh=False))
            continue
        stored = StoredAlert(
            alert_id=next(ids),
            stream_id=alert.stream_id,
            owner_id=owner_id,
            sender=alert.sender,
            severity=alert.severity,
            message=alert.message,
            timestamp=alert.timestamp,
            metadata=alert.metadata,
        )
        fresh.append(stored)
        outcome.append(stored)
        if key is not None:
            known[key] = stored
    return outcome
