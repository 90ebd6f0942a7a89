"""The table of alerts: stored by the batch, read in the order of their commits. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, LiteralString

from attrs import define, evolve, frozen

from relay import policy
from relay.model import Identity, NewAlert, StoredAlert
from relay.postgres.database import Connection, Database
from relay.postgres.text import storable

# 'rela', in ASCII, and a number: advisory locks have numbers for names.
ALERTS_LOCK = "select pg_advisory_xact_lock(1919249505, 1)"

SELECT = (
    "select a.alert_id, a.stream_id, s.owner_id, a.sender, a.severity, a.message, a.timestamp,"
    " a.metadata, a.alert_key from relay.alerts a join relay.streams s using (stream_id) "
)

INSERT = (
    "insert into relay.alerts"
    " (alert_id, stream_id, sender, severity, message, timestamp, metadata, alert_key)"
    " select * from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::bigint[], %s::json[], %s::text[])"
    " on conflict (stream_id, sender, alert_key) do nothing returning alert_id"
)

Key = tuple[str, str, str | None]
"""What makes an alert the same as an earlier one: stream, sender, key."""


@frozen
class History:
    """A page of stored alerts."""

    alerts: list[StoredAlert]
    more: bool
    """Whether there are later ones."""


@define(eq=False)
class AlertTable:
    """The alerts in `relay.alerts`."""

    _database: Database

    async def store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | None]:
        """Store a batch in one transaction; return one entry for each, in order, once committed.

        None: there is no such stream, or `by` is set and may not alert it. An alert whose stream,
        sender and key are those of an earlier one is that earlier one, `fresh=False`.

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

    async def history(
        self,
        reader: Identity,
        *,
        stream_id: str | None = None,
        after: int | None = None,
        last: int | None = None,
        limit: int = 100,
    ) -> History | None:
        """A page of the alerts that a reader may see now, in order.

        Those with a greater id than `after`, from the beginning without it; or, with `last`, so
        many of the newest. None when `after` is no alert that the reader may see; 0 is before all.
        """
        visible, whose = _visible_to(reader, stream_id)

        def select(connection: Connection) -> History | None:
            if after and not _exists(connection, f"{visible} and a.alert_id = %s", [*whose, after]):
                return None
            if last is not None:
                newest = f"{SELECT} where {visible} and a.alert_id > %s order by a.alert_id desc"
                rows = connection.execute(f"{newest} limit %s", [*whose, after or 0, last])
                return History([_read(row) for row in rows][::-1], more=False)
            page = f"{SELECT} where {visible} and a.alert_id > %s order by a.alert_id limit %s"
            rows = connection.execute(page, [*whose, after or 0, limit + 1])
            alerts = [_read(row) for row in rows]
            return History(alerts[:limit], more=len(alerts) > limit)

        return await self._database.transact(select)

    async def newest(
        self, reader: Identity, *, stream_id: str | None, before: int | None, limit: int
    ) -> History:
        """A page of the alerts that a reader may see now, the newest first: those before `before`;
        `more` are older."""
        visible, whose = _visible_to(reader, stream_id)

        def select(connection: Connection) -> History:
            page = f"{SELECT} where {visible} and a.alert_id < %s order by a.alert_id desc limit %s"
            rows = connection.execute(page, [*whose, before or 2**63 - 1, limit + 1])
            alerts = [_read(row) for row in rows]
            return History(alerts[:limit], more=len(alerts) > limit)

        return await self._database.transact(select)

    async def latest_id(self) -> int:
        """The greatest id that is stored; 0 when there is none."""

        def select(connection: Connection) -> int:
            rows = connection.execute("select coalesce(max(alert_id), 0) from relay.alerts")
            return int(rows.fetchall()[0][0])

        return await self._database.transact(select)


def _store(connection: Connection, batch: list[NewAlert]) -> list[StoredAlert | None]:
    owners = _owners(connection, batch)
    connection.execute(ALERTS_LOCK)
    # Alerts that turn out to be refused or repeated leave gaps, which harm nobody.
    candidates = [
        _candidate(alert_id, owners.get(alert.stream_id), alert)
        for alert_id, alert in zip(_new_ids(connection, len(batch)), batch, strict=True)
    ]
    inserted = _insert(connection, candidates, batch)
    repeated = [
        alert
        for candidate, alert in zip(candidates, batch, strict=True)
        if candidate is not None and candidate.alert_id not in inserted
    ]
    earlier = _earlier(connection, repeated) if repeated else {}
    return [
        candidate if candidate is None or candidate.alert_id in inserted else earlier[_key(alert)]
        for candidate, alert in zip(candidates, batch, strict=True)
    ]


def _owners(connection: Connection, batch: list[NewAlert]) -> dict[str, str]:
    rows = connection.execute(
        "select stream_id, owner_id from relay.streams where stream_id = any(%s)",
        [list({alert.stream_id for alert in batch})],
    )
    return dict(rows)


def _new_ids(connection: Connection, number: int) -> list[int]:
    rows = connection.execute(
        "select nextval('relay.alert_ids') from generate_series(1, %s)", [number]
    )
    return [alert_id for (alert_id,) in rows]


def _candidate(alert_id: int, owner_id: str | None, alert: NewAlert) -> StoredAlert | None:
    """What `alert` is stored as, if it may be and is not there yet."""
    if owner_id is None:
        return None
    if alert.by is not None and not policy.may_alert(alert.by, alert.stream_id, owner_id):
        return None
    return StoredAlert(
        alert_id=alert_id,
        stream_id=alert.stream_id,
        owner_id=owner_id,
        sender=alert.sender,
        severity=alert.severity,
        message=alert.message,
        timestamp=alert.timestamp,
        metadata=alert.metadata,
    )


def _insert(
    connection: Connection, candidates: list[StoredAlert | None], batch: list[NewAlert]
) -> set[int]:
    """Insert in one statement; return the ids of those that were not there yet."""
    values = [
        (
            candidate.alert_id,
            candidate.stream_id,
            candidate.sender,
            candidate.severity,
            candidate.message,
            candidate.timestamp,
            None if candidate.metadata is None else json.dumps(candidate.metadata),
            alert.alert_key,
        )
        for candidate, alert in zip(candidates, batch, strict=True)
        if candidate is not None
    ]
    if not values:
        return set()
    rows = connection.execute(INSERT, [list(column) for column in zip(*values, strict=True)])
    return {alert_id for (alert_id,) in rows}


def _earlier(connection: Connection, repeated: list[NewAlert]) -> dict[Key, StoredAlert]:
    columns = zip(*(_key(alert) for alert in repeated), strict=True)
    rows = connection.execute(
        SELECT
        + "join unnest(%s::text[], %s::text[], %s::text[]) as k (stream_id, sender, alert_key)"
        " using (stream_id, sender, alert_key)",
        [list(column) for column in columns],
    )
    return {(row[1], row[3], row[8]): evolve(_read(row), fresh=False) for row in rows}


def _key(alert: NewAlert) -> Key:
    return alert.stream_id, alert.sender, alert.alert_key


def _read(row: tuple[Any, ...]) -> StoredAlert:
    return StoredAlert(*row[:8])


def _storable(alert: NewAlert) -> NewAlert:
    return evolve(
        alert,
        stream_id=storable(alert.stream_id),
        sender=storable(alert.sender),
        severity=storable(alert.severity),
        message=storable(alert.message),
        alert_key=None if alert.alert_key is None else storable(alert.alert_key),
    )


def _visible_to(reader: Identity, stream_id: str | None) -> tuple[LiteralString, list[Any]]:
    """A condition on alerts `a` and streams `s`, and its values."""
    condition: LiteralString = "true"
    values: list[Any] = []
    if stream_id is not None:
        condition, values = "a.stream_id = %s", [stream_id]
    view = policy.view_of(reader)
    if view.everything:
        return condition, values
    condition += " and (s.owner_id = %s or a.stream_id = any(%s))"
    return condition, [*values, view.owner_id, list(view.stream_ids)]


def _exists(connection: Connection, condition: LiteralString, values: list[Any]) -> bool:
    query = SELECT + " where " + condition
    return connection.execute(query, values).fetchone() is not None
