"""Reads what waits in the outbox for a target: alerts and stream events, merged by their ids. A
part of `alert_targets.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

from attrs import frozen

from relay.model.access.identity import ANY_STREAM
from relay.model.targets.alert_target import SEVERITY_RANKS, AlertTarget, Cooldown
from relay.model.targets.outbox import EventPage, OutboxEvent, event_id_of
from relay.model.targets.stream_event import ALERT_EVENT, StreamEvent
from relay.postgres.database import Connection
from relay.postgres.tables.alerts.alert_pages import (
    MAX_ALERT_ID,
    ONE_STREAM,
    AlertPage,
    ids_of_owner,
    ids_of_streams,
    read_page,
)
from relay.postgres.tables.alerts.alert_rows import OF_THIS_LIFE

MAX_SCANNED_ALERTS = 2000
"""Alerts that are looked at for a page, where rules leave some out."""
IS_SEVERE: LiteralString = (
    "coalesce(array_position('{low,medium,high,critical}'::text[], a.severity), 2) >= %(rank)s"
)
"""Whether an alert `a` has the severity that is asked for, or more; `read_alert` takes what is no
severity for `medium`."""
HAS_PREFIX: LiteralString = "starts_with(a.stream_id, %(prefix)s)"
IS_ASKED_FOR: LiteralString = "relay.is_among(a.stream_id, %(streams)s)"
MAY_SEE_ALL: LiteralString = (
    "exists (select from relay.grants g where g.user_id = %(owner_id)s and g.stream_id = '*')"
)
GRANTED_TO_VIEWER: LiteralString = (
    "select s.stream_id from relay.grants g join relay.streams s on s.stream_id = g.stream_id"
    " where g.user_id = %(owner_id)s"
    " union select s.stream_id from relay.grants g join relay.streams s"
    " on starts_with(s.stream_id, left(g.stream_id, -1))"
    " where g.user_id = %(owner_id)s and right(g.stream_id, 1) = '*' and g.stream_id <> '*'"
)
EVENTS_BEHIND: LiteralString = (
    "select e.event_id, e.stream_id, e.owner_id, e.kind, e.epoch,"
    # Other programs can write here, too: one such event must not fail the whole page.
    " case when isfinite(e.happened_at)"
    " then greatest(floor(extract(epoch from e.happened_at) * 1000), 0)::bigint"
    " else e.event_id / 1000 end"
    " from relay.stream_events e join relay.streams s on s.stream_id = e.stream_id"
    " where e.event_id > %(after)s and e.event_id < %(before)s and e.kind = any(%(kinds)s)"
    " and s.owner_id is not null and s.life = e.life"
)


@frozen
class Bounds:
    """The range of ids that is read for a target, and how many rows of it."""

    values: dict[str, Any]
    most: int

    @classmethod
    def of(cls, target: AlertTarget, after: int, before: int, most: int) -> Bounds:
        """The ids greater than `after` and less than `before`."""
        values: dict[str, Any] = {
            "stream_id": target.stream_id,
            "owner_id": target.owner_id if target.viewer is None else target.viewer.user_id,
            "streams": None if target.viewer is None else [*target.viewer.streams],
            "prefix": target.rules.stream_prefix,
            "rank": SEVERITY_RANKS[target.rules.min_severity],
            "kinds": [*target.rules.events],
            "after": after,
            "before": before,
            "most": most,
        }
        return cls(values, most)


def alert_ids(target: AlertTarget, *, ruled: bool = True) -> LiteralString | None:
    """A query of the first `most` ids of alerts that a target has to get, or, unless `ruled`, of
    those that its rules are asked about; None if it gets no alerts."""
    rules = target.rules
    if ALERT_EVENT not in rules.events:
        return None
    also: LiteralString = "true"
    if ruled and rules.min_severity != "low":
        also = IS_SEVERE
    if ruled and rules.stream_prefix:
        also = f"{also} and {HAS_PREFIX}"
    if target.viewer is not None:
        return _ids_for_viewer(also, narrowed=ruled and _asks_for_some(target))
    if target.stream_id is not None:
        return ids_of_streams(ONE_STREAM, also=also)
    if target.owner_id is not None:
        return ids_of_owner(also=also)
    return (
        "select a.alert_id from relay.alerts a join relay.streams s on s.stream_id = a.stream_id"  # noqa: S608 (constants)
        f" where a.alert_id > %(after)s and a.alert_id < %(before)s and {OF_THIS_LIFE} and {also}"
        " order by a.alert_id limit %(most)s"
    )


def _asks_for_some(target: AlertTarget) -> bool:
    """Whether the user of a target wants only some of the streams that may be seen."""
    return target.viewer is not None and ANY_STREAM not in target.viewer.streams


def _ids_for_viewer(also: LiteralString, *, narrowed: bool) -> LiteralString:
    """The ids of the alerts of streams that a user may see now: own, granted, or all."""
    if narrowed:
        also = f"{also} and {IS_ASKED_FOR}"
    return (
        f"select alert_id from (({ids_of_owner(also=also)})"  # noqa: S608 (constants)
        f" union ({ids_of_streams(GRANTED_TO_VIEWER, also=also)})"
        " union (select a.alert_id from relay.alerts a"
        " join relay.streams s on s.stream_id = a.stream_id"
        f" where {MAY_SEE_ALL} and a.alert_id > %(after)s and a.alert_id < %(before)s"
        f" and {OF_THIS_LIFE} and {also} order by a.alert_id limit %(most)s)) seen"
        " order by alert_id limit %(most)s"
    )


def event_rows(target: AlertTarget) -> LiteralString | None:
    """A query of the first `most` stream events that a target has to get; None if it gets none."""
    if set(target.rules.events) <= {ALERT_EVENT}:
        return None
    scope: LiteralString = ""
    if target.viewer is not None:
        scope = (
            " and relay.is_among(e.stream_id, %(streams)s)"
            " and %(owner_id)s in (select relay.viewers_of(s.stream_id, s.owner_id))"
        )
    elif target.stream_id is not None:
        scope = " and e.stream_id = %(stream_id)s"
    elif target.owner_id is not None:
        scope = " and e.owner_id = %(owner_id)s and s.owner_id = e.owner_id"
    if target.rules.stream_prefix:
        scope = f"{scope} and starts_with(e.stream_id, %(prefix)s)"
    return f"{EVENTS_BEHIND}{scope} order by e.event_id limit %(most)s"


def read_behind(connection: Connection, target: AlertTarget, position: int, most: int) -> EventPage:
    """The next events of a target after a position, in order: at most so many alerts and events.

    `StoreRejects` when the next alert cannot be read by any means.
    """
    # Ids are given out in the order of commits, over alerts and events: up to this one nothing can
    # come any more, whatever is committed between the queries.
    [(through,)] = connection.execute("select relay.last_outbox_id()").fetchall()
    through = _end_of_scan(connection, target, position, max(through, position))
    bounds = Bounds.of(target, position, through + 1, most)
    alerts, events = AlertPage([], 0), read_events(connection, target, bounds)
    if ids := alert_ids(target):
        alerts = read_page(connection, ids, bounds.values)
    if len(events) == most:
        through = events[-1].event_id
    if alerts.found == most or len(alerts.alerts) < alerts.found:
        through = min(through, alerts.alerts[-1].alert_id)
    found: list[OutboxEvent] = [*alerts.alerts, *events]
    page = sorted((each for each in found if event_id_of(each) <= through), key=event_id_of)
    return EventPage(page, through, read_cooldowns(connection, target, page))


def _end_of_scan(connection: Connection, target: AlertTarget, position: int, through: int) -> int:
    """The id up to which alerts are looked at: where rules may leave out many, not all at once."""
    rules = target.rules
    ids = alert_ids(target, ruled=False)
    leaves_none_out = rules.min_severity == "low" and not rules.stream_prefix
    if ids is None or (leaves_none_out and not _asks_for_some(target)):
        return through
    values = Bounds.of(target, position, through + 1, MAX_SCANNED_ALERTS).values
    [(last, found)] = connection.execute(
        f"select max(alert_id), count(*) from ({ids}) as scanned",  # noqa: S608 (constants)
        values,
    ).fetchall()
    return int(last) if found == MAX_SCANNED_ALERTS else through


def read_events(
    connection: Connection, target: AlertTarget, bounds: Bounds
) -> Sequence[StreamEvent]:
    """The first stream events that a target has to get, in order."""
    query = event_rows(target)
    if query is None:
        return []
    return [StreamEvent(*row) for row in connection.execute(query, bounds.values)]


def read_cooldowns(
    connection: Connection, target: AlertTarget, events: Sequence[OutboxEvent]
) -> list[Cooldown]:
    """What a target with a cooldown has had of the streams of these events."""
    if not target.rules.cooldown or not events:
        return []
    rows = connection.execute(
        "select stream_id, kind, delivered_id, suppressed from relay.target_cooldowns"
        " where target_id = %s and stream_id = any(%s)",
        [target.target_id, [*{each.stream_id for each in events}]],
    )
    return [Cooldown(*row) for row in rows]


def next_alert_id(connection: Connection, target: AlertTarget, position: int) -> int | None:
    """The id of the next alert that a target has to get; None when there is none."""
    ids = alert_ids(target)
    if ids is None:
        return None
    rows = connection.execute(ids, Bounds.of(target, position, MAX_ALERT_ID, 1).values).fetchall()
    return rows[0][0] if rows else None
