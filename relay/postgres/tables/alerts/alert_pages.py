"""Reads pages of `relay.alerts` that are bounded by rows and by bytes. A part of `alerts.py`.

A query finds the ids of a page; then the rows are read in that order, until their bytes are a page.
What a page costs is so known before it is read: neither the server nor relay touches the rows
behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
from attrs import frozen

from relay.errors import StoreRejects
from relay.model.access.identity import Identity
from relay.model.access.permissions import visible_streams
from relay.model.alerts.alert import StoredAlert
from relay.postgres.database import Connection
from relay.postgres.tables.alerts.alert_rows import (
    ALERT_COLUMNS,
    ALERT_COST,
    OF_THIS_LIFE,
    UNREADABLE_COLUMNS,
    read_alert,
    read_unreadable,
)

MAX_ALERT_ID = 2**63 - 1
MAX_PAGE_COST = 1 << 20
"""Bytes of a page, as its rows stand in the table; a page has at least one alert."""

UNREADABLE_ERRORS = (
    psycopg.DataError,
    psycopg.errors.DataCorrupted,
    psycopg.errors.InternalError_,  # a chunk of a long value is missing
    UnicodeError,
)
"""Errors that a row can cause, and no other row has."""

GRANTED: LiteralString = (
    "select stream_id from relay.streams where stream_id = any(%(stream_ids)s)"
    " union select stream_id from unnest(%(prefixes)s::text[], %(prefix_ends)s::text[])"
    " as range (low, high) join relay.streams"
    ' on stream_id collate "C" >= low and stream_id collate "C" < high'
)
ONE_STREAM: LiteralString = (
    "select s.stream_id from relay.streams s where s.stream_id = %(stream_id)s"
)
VISIBLE: LiteralString = (
    "(s.owner_id = %(owner_id)s or s.stream_id = any(%(stream_ids)s)"
    " or exists (select from unnest(%(prefixes)s::text[]) as prefix"
    " where starts_with(s.stream_id, prefix)))"
)
"""Whether a reader may see a stream `s`."""


@frozen
class AlertPage:
    """Alerts in the order of their ids' query."""

    alerts: list[StoredAlert]
    found: int
    """How many ids the query found, of which the page has the first."""


@frozen
class Scope:
    """The streams whose alerts are asked for."""

    stream_id: str | None
    """None: all that the reader may see."""
    everything: bool
    """Whether the reader may see all streams."""
    values: Mapping[str, Any]

    @classmethod
    def of(cls, reader: Identity, stream_id: str | None) -> Scope:
        """What a reader may see now, or a stream of it."""
        visible = visible_streams(reader)
        values = {
            "stream_id": stream_id,
            "owner_id": visible.owner_id,
            "stream_ids": list(visible.stream_ids),
            "prefixes": list(visible.prefixes),
            "prefix_ends": visible.prefix_ends,
        }
        return cls(stream_id, visible.everything, values)

    @property
    def condition(self) -> LiteralString:
        """Whether a stream `s` is in the scope."""
        asked: LiteralString = "true" if self.stream_id is None else "s.stream_id = %(stream_id)s"
        return asked if self.everything else f"{asked} and {VISIBLE}"

    def ids(self, order: LiteralString = "asc") -> LiteralString:
        """A query of the first `most` ids between `after` and `before`. Alerts of streams outside
        the scope are not looked at."""
        if self.stream_id is not None:
            one = ONE_STREAM if self.everything else f"{ONE_STREAM} and {VISIBLE}"
            return ids_of_streams(one, order)
        if self.everything:
            return (
                "select a.alert_id from relay.alerts a"  # noqa: S608 (constants)
                " join relay.streams s on s.stream_id = a.stream_id"
                " where a.alert_id > %(after)s and a.alert_id < %(before)s"
                f" and {OF_THIS_LIFE}"
                f" order by a.alert_id {order} limit %(most)s"
            )
        return (
            f"select alert_id from (({ids_of_owner(order)})"  # noqa: S608 (constants)
            f" union ({ids_of_streams(GRANTED, order)})) seen"
            f" order by alert_id {order} limit %(most)s"
        )


ALL_STREAMS = Scope(None, everything=True, values={})


def ids_of_owner(order: LiteralString = "asc", *, also: LiteralString = "true") -> LiteralString:
    """A query of the first `most` ids between `after` and `before` of the streams of an owner, of
    those alerts `a` that are `also` so. What it costs does not depend on how many streams these
    are."""
    return (
        "select a.alert_id from relay.alerts a"  # noqa: S608 (constants)
        " join relay.streams s on s.stream_id = a.stream_id"
        " where (a.owner_id, a.alert_id) > (%(owner_id)s::text, %(after)s::bigint)"
        " and (a.owner_id, a.alert_id) < (%(owner_id)s::text, %(before)s::bigint)"
        f" and s.owner_id = a.owner_id and {OF_THIS_LIFE} and {also}"
        f" order by a.owner_id {order}, a.alert_id {order} limit %(most)s"
    )


def ids_of_streams(
    streams: LiteralString, order: LiteralString = "asc", *, also: LiteralString = "true"
) -> LiteralString:
    """A query of the first `most` ids between `after` and `before`, merged from those of each
    stream, of those alerts `a` that are `also` so."""
    # Compared as rows, the alerts of a stream are a range of the index of both columns. Of
    # `stream_id = … order by alert_id limit …` Postgres may think that walking over the alerts of
    # all streams finds enough of this one soon, which is wrong for a stream with few.
    return (
        f"select found.alert_id from ({streams}) asked"  # noqa: S608 (constants)
        " join relay.streams s on s.stream_id = asked.stream_id cross join lateral"
        " (select a.alert_id from relay.alerts a where (a.stream_id, a.alert_id)"
        " > (s.stream_id, greatest(%(after)s::bigint, s.alerts_from))"
        " and (a.stream_id, a.alert_id) < (s.stream_id, %(before)s::bigint)"
        f" and {OF_THIS_LIFE} and {also}"
        f" order by a.stream_id {order}, a.alert_id {order} limit %(most)s) found"
        f" order by found.alert_id {order} limit %(most)s"
    )


def read_page(connection: Connection, ids: LiteralString, values: Mapping[str, Any]) -> AlertPage:
    """The alerts of a query of ids, in its order, as many as a page may hold.

    A row that cannot be read is an alert without its values. `StoreRejects` when not even its
    stream can be read.
    """
    try:
        with connection.transaction():
            rows = connection.execute(
                _page_query(ids, ALERT_COLUMNS), {**values, "most_bytes": MAX_PAGE_COST}
            ).fetchall()
    except UNREADABLE_ERRORS:
        return _read_one_by_one(connection, ids, values)
    return AlertPage([read_alert(row[:-1]) for row in rows], rows[0][-1] if rows else 0)


def _page_query(ids: LiteralString, columns: LiteralString) -> LiteralString:
    return (
        f"with recursive found as materialized (select array({ids}) as ids),"  # noqa: S608 (constants)
        " page (place, bytes) as (select 0, 0::bigint union all"
        " select p.place + 1, p.bytes + coalesce((select "
        f"{ALERT_COST} from relay.alerts a where a.alert_id = f.ids[p.place + 1]), 0)"
        " from page p, found f where p.bytes < %(most_bytes)s and p.place < cardinality(f.ids))"
        f" select {columns}, cardinality(f.ids) from page p cross join found f"
        " join relay.alerts a on a.alert_id = f.ids[p.place]"
        " join relay.streams s on s.stream_id = a.stream_id order by p.place"
    )


def _read_one_by_one(
    connection: Connection, ids: LiteralString, values: Mapping[str, Any]
) -> AlertPage:
    found = [row[0] for row in connection.execute(f"{ids}", values)]
    alerts: list[StoredAlert] = []
    cost = 0
    for alert_id in found:
        alert = _read_one(connection, alert_id)
        alerts.append(alert)
        cost += len(alert.message) + (0 if alert.metadata is None else MAX_PAGE_COST // 16)
        if cost >= MAX_PAGE_COST:
            break
    return AlertPage(alerts, len(found))


def _read_one(connection: Connection, alert_id: int) -> StoredAlert:
    from_alerts: LiteralString = (
        " from relay.alerts a join relay.streams s using (stream_id) where a.alert_id = %s"
    )
    try:
        with connection.transaction():
            [row] = connection.execute(f"select {ALERT_COLUMNS}{from_alerts}", [alert_id])
            return read_alert(row)
    except UNREADABLE_ERRORS:
        pass
    try:
        with connection.transaction():
            [row] = connection.execute(f"select {UNREADABLE_COLUMNS}{from_alerts}", [alert_id])
            return read_unreadable(row)
    except UNREADABLE_ERRORS as error:
        raise StoreRejects(f"alert {alert_id} cannot be read ({type(error).__name__})") from None
