"""The table of alerts: stored by the batch, read in the order of their commits. Floor 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, LiteralString

from attrs import define, evolve, frozen

from relay import policy
from relay.model import Identity, NewAlert, StoredAlert
from relay.postgres.alert_rows import COLUMNS, read_alert
from relay.postgres.database import Connection, Database
from relay.postgres.text import storable

# Migration 0005. Advisory locks have numbers for names: 'rela', in ASCII, and 1.
LOCK_ALERTS = "select relay.lock_alerts()"

SELECT: LiteralString = (
    f"select {COLUMNS} from relay.alerts a join relay.streams s using (stream_id) "  # noqa: S608 (constants)
)

# SQL's alerts go through this as well.
STORE = (
    "select alert_id, fresh from relay.store_alerts(%s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::bigint[], %s::json[], %s::text[])"
)


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
            return [read_alert(row) for row in rows]

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
        One that was removed meanwhile does, as far as can be told: the streams that the reader may
        see remember up to where theirs were.
        """
        visible, whose = _visible_to(reader, stream_id)

        def select(connection: Connection) -> History | None:
            if after and not _was_stored(connection, visible, whose, after):
                return None
            if last is not None:
                newest = f"{SELECT} where {visible} and a.alert_id > %s order by a.alert_id desc"
                rows = connection.execute(f"{newest} limit %s", [*whose, after or 0, last])
                return History([read_alert(row) for row in rows][::-1], more=False)
            page = f"{SELECT} where {visible} and a.alert_id > %s order by a.alert_id limit %s"
            rows = connection.execute(page, [*whose, after or 0, limit + 1])
            alerts = [read_alert(row) for row in rows]
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
            alerts = [read_alert(row) for row in rows]
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
    allowed = [alert for alert in batch if _may_be_stored(alert, owners)]
    stored = iter(_insert(connection, allowed, owners) if allowed else [])
    return [next(stored) if _may_be_stored(alert, owners) else None for alert in batch]


def _owners(connection: Connection, batch: list[NewAlert]) -> dict[str, str]:
    rows = connection.execute(
        "select stream_id, owner_id from relay.streams where stream_id = any(%s)",
        [list({alert.stream_id for alert in batch})],
    )
    return dict(rows)


def _may_be_stored(alert: NewAlert, owners: dict[str, str]) -> bool:
    owner_id = owners.get(alert.stream_id)
    if owner_id is None:
        return False
    return alert.by is None or policy.may_alert(alert.by, alert.stream_id, owner_id)


def _insert(
    connection: Connection, alerts: list[NewAlert], owners: dict[str, str]
) -> list[StoredAlert]:
    values = [
        (
            alert.stream_id,
            alert.sender,
            alert.severity,
            alert.message,
            alert.timestamp,
            None if alert.metadata is None else json.dumps(alert.metadata),
            alert.alert_key,
        )
        for alert in alerts
    ]
    outcome = connection.execute(
        STORE, [list(column) for column in zip(*values, strict=True)]
    ).fetchall()
    repeated = [alert_id for alert_id, fresh in outcome if not fresh]
    earlier = _earlier(connection, repeated) if repeated else {}
    return [
        _as_stored(alert_id, owners[alert.stream_id], alert) if fresh else earlier[alert_id]
        for alert, (alert_id, fresh) in zip(alerts, outcome, strict=True)
    ]


def _earlier(connection: Connection, alert_ids: list[int]) -> dict[int, StoredAlert]:
    rows = connection.execute(SELECT + "where a.alert_id = any(%s)", [alert_ids])
    return {row[0]: evolve(read_alert(row), fresh=False) for row in rows}


def _as_stored(alert_id: int, owner_id: str, alert: NewAlert) -> StoredAlert:
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


def _was_stored(
    connection: Connection, visible: LiteralString, whose: list[Any], alert_id: int
) -> bool:
    stored = f"{SELECT} where {visible} and a.alert_id = %s"
    removed = (
        "select from relay.streams s"
        f" where {visible.replace('a.stream_id', 's.stream_id')} and s.alerts_removed_to >= %s"
    )
    values = [*whose, alert_id]
    return any(
        connection.execute(query, values).fetchone() is not None
        for query in (stored, f"{removed} limit 1")
    )
