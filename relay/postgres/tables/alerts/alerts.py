"""The table of alerts: stored in batches, read in the order of their commits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import LiteralString, TypeVar

import psycopg
import structlog
import trio
from attrs import define, evolve, field

from relay.errors import StoreRejects, StoreUnavailable
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.model.alerts.alert import History, NewAlert, NoRoom, StoredAlert
from relay.model.alerts.alert_picture import WhatIsWanted, keep_nothing
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.alerts.alert_bytes import AlertBytes
from relay.postgres.tables.alerts.alert_pages import ALL_STREAMS, MAX_ALERT_ID, Scope, read_page
from relay.postgres.tables.alerts.alert_pictures import note_wanted
from relay.postgres.tables.alerts.alert_rows import ALERT_COLUMNS, OF_THIS_LIFE, read_alert

# Migration 0010.
LOCK_ALERTS = "select relay.lock_alerts()"

SELECT_ALERTS: LiteralString = (
    f"select {ALERT_COLUMNS} from relay.alerts a join relay.streams s using (stream_id) "  # noqa: S608 (constants)
)

# Alerts that are raised in SQL go through this, too: `relay.store_raised_alerts` calls it.
STORE_ALERTS = (
    "select alert_id, fresh from relay.store_alerts(%s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::bigint[], %s::json[], %s::text[], %s::text[])"
)

ROW_BYTES = 200
"""What an alert takes beside its values, about; migration 0011 counts the same."""
MAX_RAISED_BATCH = 500
"""Alerts from SQL that are stored at once."""
HISTORY_QUEUE_TIMEOUT = 5.0
"""Seconds that a question about history waits for its turn."""

log = structlog.get_logger()

T = TypeVar("T")


@define(eq=False, repr=False)
class AlertTable:
    """The alerts in `relay.alerts`."""

    _database: Database
    _bytes: AlertBytes | None = None
    """How many bytes may be stored; None: any number."""
    _wanted: WhatIsWanted = keep_nothing
    _history_slots: trio.CapacityLimiter = field(init=False)
    _readers: dict[str, tuple[trio.StrictFIFOLock, int]] = field(factory=dict)
    """The turns of each reader of history, and how many questions wait for them or run."""

    def __attrs_post_init__(self) -> None:
        self._history_slots = trio.CapacityLimiter(max(1, self._database.size // 2))

    async def store(self, alerts: Sequence[NewAlert]) -> list[StoredAlert | NoRoom | None]:
        """Store a batch in one transaction; return one entry for each, in order, once committed.

        None: there is no such stream, or `by` is set and may not alert it. An alert with the
        stream, sender and key of an earlier one is that earlier one, `fresh=False`. One for which
        there is no room is not stored.

        Ids are assigned under a lock that is held until the commit is visible to others, so a
        reader that has read up to some id has missed none below it.
        """
        if not alerts:
            return []
        batch = [_storable(alert) for alert in alerts]
        while True:
            with suppress(_OwnerChanged):
                return await self._database.transact(
                    lambda connection: self._store_batch(connection, batch)
                )

    def _store_batch(
        self, connection: Connection, batch: list[NewAlert]
    ) -> list[StoredAlert | NoRoom | None]:
        stored = _store(connection, batch, self._bytes)
        note_wanted(connection, batch, stored, self._wanted)
        return stored

    async def after(self, alert_id: int, *, limit: int = 500) -> list[StoredAlert]:
        """The alerts of all streams with a greater id, in order: `limit` at most, and as many as a
        page may hold. Alerts that were raised in SQL are stored before.

        `StoreRejects` when one of them can be read by no means.
        """
        await store_raised(self._database)
        ids = ALL_STREAMS.ids()
        values = {"after": alert_id, "before": MAX_ALERT_ID, "most": limit}
        page = await self._database.transact(lambda connection: read_page(connection, ids, values))
        return page.alerts

    async def next_id(self, alert_id: int) -> int | None:
        """The next id after this one; None when there is none."""

        def select(connection: Connection) -> int | None:
            rows = connection.execute(
                "select min(alert_id) from relay.alerts where alert_id > %s", [alert_id]
            )
            next_id: int | None = rows.fetchall()[0][0]
            return next_id

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

        Those with a greater id than `after`, or all; with `last`, the newest of these, at most so
        many. None when `after` is not the id of an alert that the reader may see, or 0. The id of a
        removed alert is accepted, as far as the streams that the reader may see remember it.
        """
        scope = Scope.of(reader, stream_id)
        most = limit + 1 if last is None else last
        values = {**scope.values, "after": after or 0, "before": MAX_ALERT_ID, "most": most}
        if last is None:
            ids = scope.ids()
        else:
            newest = scope.ids("desc")
            ids = f"select alert_id from ({newest}) newest order by alert_id"  # noqa: S608 (constants)

        def select(connection: Connection) -> History | None:
            if after and not _was_stored(connection, scope, after):
                return None
            page = read_page(connection, ids, values)
            alerts = page.alerts if last is not None else page.alerts[:limit]
            return History(alerts, more=page.found > len(alerts))

        return await self._read(reader, select)

    async def newest(
        self, reader: Identity, *, stream_id: str | None, before: int | None, limit: int
    ) -> History:
        """A page of the alerts that a reader may see now, the newest first: those with a smaller
        id than `before`, or all."""
        scope = Scope.of(reader, stream_id)
        ids = scope.ids("desc")
        bounds = {"after": 0, "before": before or MAX_ALERT_ID}
        values = {**scope.values, **bounds, "most": limit + 1}

        def select(connection: Connection) -> History:
            page = read_page(connection, ids, values)
            alerts = page.alerts[:limit]
            return History(alerts, more=page.found > len(alerts))

        return await self._read(reader, select)

    async def _read(self, reader: Identity, select: Callable[[Connection], T]) -> T:
        """Run a query of history, a few of which run at a time: the other connections to the
        database are left to verification and to new alerts. One reader has one turn at a time."""
        readers, name = self._readers, reader.sender
        turns, waiting = readers.get(name, (trio.StrictFIFOLock(), 0))
        readers[name] = turns, waiting + 1
        try:
            with trio.move_on_after(HISTORY_QUEUE_TIMEOUT) as queue:
                await turns.acquire()
            if queue.cancelled_caught:
                raise StoreUnavailable("too many questions about the history of alerts")
            try:
                return await self._read_in_turn(select, queue.deadline)
            finally:
                turns.release()
        finally:
            turns, waiting = readers.pop(name)
            if waiting > 1:
                readers[name] = turns, waiting - 1

    async def _read_in_turn(self, select: Callable[[Connection], T], deadline: float) -> T:
        with trio.move_on_at(deadline) as queue:
            await self._history_slots.acquire()
        if queue.cancelled_caught:
            raise StoreUnavailable("too many questions about the history of alerts")
        try:
            return await self._database.transact(select, may_be_long=True)
        except StoreRejects as why:
            raise StoreUnavailable(str(why)) from None
        finally:
            self._history_slots.release()

    async def latest_id(self) -> int:
        """The greatest id that is stored; 0 when there is none."""

        def select(connection: Connection) -> int:
            rows = connection.execute("select coalesce(max(alert_id), 0) from relay.alerts")
            return int(rows.fetchall()[0][0])

        return await self._database.transact(select)


async def store_raised(database: Database) -> None:
    """Store all alerts that committed transactions have raised in SQL, as far as possible: this
    holds up no other alert."""
    with suppress(StoreUnavailable, StoreRejects):
        while await database.transact(_any_raised):
            try:
                await database.transact(_store_some_raised)
            except StoreRejects:
                await database.transact(_store_or_remove_one_raised)


def _any_raised(connection: Connection) -> bool:
    rows = connection.execute("select exists (select from relay.raised_alerts)").fetchall()
    return bool(rows[0][0])


def _store_some_raised(connection: Connection, most: int = MAX_RAISED_BATCH) -> None:
    connection.execute("select relay.store_raised_alerts(%s)", [most])


def _store_or_remove_one_raised(connection: Connection) -> None:
    """Store the first alert from SQL, or remove it when that cannot be."""
    with suppress(psycopg.DataError, psycopg.IntegrityError), connection.transaction():
        _store_some_raised(connection, 1)
        return
    connection.execute(
        "delete from relay.raised_alerts where place = (select min(place) from relay.raised_alerts)"
    )
    log.error("an alert from SQL cannot be stored: it is dropped")


class _OwnerChanged(Exception):
    """A stream got another owner while an alert for it was being stored."""


def _store(
    connection: Connection, batch: list[NewAlert], stored_bytes: AlertBytes | None
) -> list[StoredAlert | NoRoom | None]:
    lives = _lives(connection, batch)
    owners = {stream_id: owner_id for stream_id, owner_id, _ in lives}
    allowed = [alert for alert in batch if _may_be_stored(alert, owners)]
    if not allowed:
        return [None for _ in batch]
    stored = iter(_insert_possible(connection, allowed, owners, stored_bytes))
    if _lives(connection, batch) != lives:
        raise _OwnerChanged  # these alerts would be those of the new owner
    return [next(stored) if _may_be_stored(alert, owners) else None for alert in batch]


def _lives(connection: Connection, batch: list[NewAlert]) -> set[tuple[str, str, int]]:
    """The owner and the present life of each stream that has an owner."""
    rows = connection.execute(
        "select stream_id, owner_id, life from relay.streams"
        " where stream_id = any(%s) and owner_id is not null",
        [list({alert.stream_id for alert in batch})],
    )
    return set(rows)


def _may_be_stored(alert: NewAlert, owners: dict[str, str]) -> bool:
    owner_id = owners.get(alert.stream_id)
    if owner_id is None:
        return False
    return alert.by is None or permissions.may_alert(alert.by, alert.stream_id, owner_id)


def _insert_possible(
    connection: Connection,
    alerts: list[NewAlert],
    owners: dict[str, str],
    stored_bytes: AlertBytes | None,
) -> list[StoredAlert | NoRoom]:
    """Insert the alerts for which there is room; one that was stored before needs none."""
    texts = [_json_of(alert) for alert in alerts]
    refused: dict[int, NoRoom] = {}
    if stored_bytes is not None:
        room = stored_bytes.open_room(connection, {alert.sender for alert in alerts})
        for place, (alert, text) in enumerate(zip(alerts, texts, strict=True)):
            size = ROW_BYTES + len(alert.message.encode()) + len((text or "").encode())
            size += len(_trace_of(alert) or "")
            no_room = room.take(alert.sender, size)
            if no_room is not None and not _is_known(connection, alert):
                refused[place] = no_room
    places = [place for place in range(len(alerts)) if place not in refused]
    inserted = (
        _insert(
            connection,
            [alerts[place] for place in places],
            [texts[place] for place in places],
            owners,
        )
        if places
        else []
    )
    found = dict(zip(places, inserted, strict=True))
    return [refused[place] if place in refused else found[place] for place in range(len(alerts))]


def _json_of(alert: NewAlert) -> str | None:
    if alert.metadata is None:
        return None
    return json.dumps(alert.metadata, separators=(",", ":"))


def _trace_of(alert: NewAlert) -> str | None:
    return None if alert.trace is None else alert.trace.text


def _is_known(connection: Connection, alert: NewAlert) -> bool:
    """Whether it is stored already, by its key."""
    if alert.alert_key is None:
        return False
    query = "select from relay.alerts where stream_id = %s and sender = %s and alert_key = %s"
    values = [alert.stream_id, alert.sender, alert.alert_key]
    return connection.execute(query, values).fetchone() is not None


def _insert(
    connection: Connection,
    alerts: list[NewAlert],
    texts: list[str | None],
    owners: dict[str, str],
) -> list[StoredAlert]:
    values = [
        (
            alert.stream_id,
            alert.sender,
            alert.severity,
            alert.message,
            alert.timestamp,
            text,
            alert.alert_key,
            _trace_of(alert),
        )
        for alert, text in zip(alerts, texts, strict=True)
    ]
    outcome = connection.execute(
        STORE_ALERTS, [list(column) for column in zip(*values, strict=True)]
    ).fetchall()
    repeated = [alert_id for alert_id, fresh in outcome if not fresh]
    earlier = _earlier(connection, repeated) if repeated else {}
    return [
        _as_stored(alert_id, owners[alert.stream_id], alert) if fresh else earlier[alert_id]
        for alert, (alert_id, fresh) in zip(alerts, outcome, strict=True)
    ]


def _earlier(connection: Connection, alert_ids: list[int]) -> dict[int, StoredAlert]:
    rows = connection.execute(SELECT_ALERTS + "where a.alert_id = any(%s)", [alert_ids])
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
        trace=alert.trace,
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


def _was_stored(connection: Connection, scope: Scope, alert_id: int) -> bool:
    seen = scope.condition
    stored = (
        "select from relay.alerts a join relay.streams s on s.stream_id = a.stream_id"
        f" where a.alert_id = %(alert_id)s and {OF_THIS_LIFE} and {seen}"
    )
    removed = (
        "select from relay.streams s where s.alerts_removed_to >= %(alert_id)s"
        f" and s.alerts_from < %(alert_id)s and s.owner_id is not null and {seen}"
    )
    values = {**scope.values, "alert_id": alert_id}
    return any(
        connection.execute(query, values).fetchone() is not None
        for query in (stored, f"{removed} limit 1")
    )
