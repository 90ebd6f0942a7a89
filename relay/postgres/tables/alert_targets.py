"""The table of alert targets: where alerts and stream events are delivered, and how far that has
come.

A relay leases a target, delivers the events after its position, and advances the position with
each. The lease of a relay that dies runs out; the next one resumes at the position, so the event
that was being delivered may be delivered twice, and none is lost.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from attrs import define, evolve

from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.model.targets.alert_target import (
    WEBPUSH_KIND,
    AlertTarget,
    NewTarget,
    TargetRules,
    TargetViewer,
)
from relay.model.targets.outbox import EventPage, FailedDelivery, OutboxProgress
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.notifications import ALERT_CHANNEL
from relay.postgres.tables.alerts.alert_pages import MAX_ALERT_ID
from relay.postgres.tables.alerts.alert_rows import OF_THIS_LIFE
from relay.postgres.tables.alerts.alerts import store_raised
from relay.postgres.tables.audit import record_change
from relay.postgres.tables.outbox_pages import (
    Bounds,
    alert_ids,
    event_rows,
    next_alert_id,
    read_behind,
    read_cooldowns,
    read_events,
)

OUTBOX_PAGE = 20
"""Events that are read at once."""
MAX_COUNTED_EVENTS = 1000
"""Waiting events that are counted for a list."""
MAX_TARGET_ERROR_LENGTH = 200
TARGET_ID_PREFIXES = {"webhook": "wh"}
"""How the ids of a kind begin; by default, as the kind."""
_CREATED_AT, _TRY_AGAIN_AT, _GIVEN_UP_AT = (
    f"case when {column} is not null"
    f" then least(greatest({column}, '0001-01-03 00:00Z'), '9999-12-29 00:00Z') end as {column}"
    for column in ("created_at", "try_again_at", "given_up_at")
)
"""As times that Python has: an operator may pause a target with 'infinity', and one time that is
none would fail all targets."""
ALERT_TARGET_COLUMNS = (
    f"target_id, kind, url, secret, position, owner_id, stream_id, {_CREATED_AT}, delivered,"
    f" failures, {_TRY_AGAIN_AT}, last_error, {_GIVEN_UP_AT}, suppressed, events, min_severity,"
    " cooldown, stream_prefix, options::text, viewer_id, viewer_by_session, streams"
)
# Only targets with events waiting, so that no relay leases one for nothing. What its rules leave
# out counts, too: the position advances past it. Where there is neither a stream nor an owner, any
# alert may be one for the target: each id is looked at once.
HAS_ALERTS = (
    "'alert' = any(t.events) and case"  # noqa: S608 (constants)
    " when t.stream_id is not null then"
    " exists (select from relay.streams s join relay.alerts a on a.stream_id = s.stream_id"
    " where s.stream_id = t.stream_id and (a.stream_id, a.alert_id) > (t.stream_id, t.position)"
    f" and {OF_THIS_LIFE})"
    " when t.owner_id is not null then"
    " exists (select from relay.alerts a join relay.streams s on s.stream_id = a.stream_id"
    " where a.owner_id = t.owner_id and (a.owner_id, a.alert_id) > (t.owner_id, t.position)"
    f" and s.owner_id = a.owner_id and {OF_THIS_LIFE})"
    " else exists (select from relay.alerts a where a.alert_id > t.position) end"
)
HAS_EVENTS = (
    "t.events <> '{alert}' and case"
    " when t.stream_id is not null then exists (select from relay.stream_events e"
    " where e.stream_id = t.stream_id and e.event_id > t.position)"
    " when t.owner_id is not null then exists (select from relay.stream_events e"
    " where e.owner_id = t.owner_id and e.event_id > t.position)"
    " else exists (select from relay.stream_events e where e.event_id > t.position) end"
)
IS_FREE = (
    "t.given_up_at is null and coalesce(t.leased_until < now(), true)"
    " and coalesce(t.try_again_at <= now(), true)"
)
# Of users there may be thousands, for which it is noted what they await.
CLAIM_TARGETS = (
    "update relay.alert_targets set lease = %(lease)s, leased_until = now() + %(lasts)s"  # noqa: S608 (constants)
    " where target_id = any(array(select free.target_id"
    " from unnest(%(kinds)s::text[], %(most)s::integer[]) as room (kind, most)"
    " cross join lateral (select t.target_id from relay.alert_targets t"
    f" where t.kind = room.kind and t.viewer_id is null and {IS_FREE}"
    f" and (({HAS_ALERTS}) or ({HAS_EVENTS}))"
    # Who was served longest ago goes first: receivers that are slow must not always be.
    " order by t.leased_until nulls first, t.position"
    " limit room.most for update of t skip locked) free)"
    " || array(select t.target_id from relay.alert_targets t"
    f" where t.viewer_id is not null and t.awaits > t.position and {IS_FREE}"
    " order by t.leased_until nulls first, t.position"
    " limit %(viewers)s for update of t skip locked))"
    f" returning {ALERT_TARGET_COLUMNS}"
)
IDLE_VIEWERS = (
    "select target_id from relay.alert_targets where viewer_id is not null and awaits <= position"
)
RECORD_DELIVERY = (
    "update relay.alert_targets set position = %(position)s, delivered = delivered + %(delivered)s,"
    " failures = 0, failing_since = null, try_again_at = null, last_error = null,"
    " leased_until = now() + %(lasts)s"
    " where target_id = %(target_id)s and lease = %(lease)s"
)
ADVANCE_POSITION = (
    "update relay.alert_targets set position = %(position)s,"
    " suppressed = suppressed + %(suppressed)s, leased_until = now() + %(lasts)s"
    " where target_id = %(target_id)s and lease = %(lease)s"
)
RECORD_COOLDOWN = (
    "insert into relay.target_cooldowns (target_id, stream_id, kind, delivered_id, suppressed)"
    " values (%s, %s, %s, %s, %s) on conflict (target_id, stream_id, kind) do update"
    " set delivered_id = excluded.delivered_id, suppressed = excluded.suppressed"
)
# Nobody has tried for so long: it may have worked meanwhile, so what is counted begins again.
IS_FIRST_OF_LONG = "coalesce(try_again_at < now() - interval '6 hours', false)"
RECORD_FAILURE = (
    "update relay.alert_targets set failures = failures + 1, last_error = %(why)s,"  # noqa: S608 (constants)
    f" failing_since = case when {IS_FIRST_OF_LONG} then now()"
    " else coalesce(failing_since, now()) end, try_again_at = now() + %(pause)s,"
    " lease = null, leased_until = now(),"
    " given_up_at = case when %(for_good)s"
    f" or (failing_since < now() - %(give_up_after)s and not {IS_FIRST_OF_LONG}) then now() end"
    " where target_id = %(target_id)s and lease = %(lease)s"
    " returning given_up_at is not null"
)
RELEASE_LEASE = (
    "update relay.alert_targets set lease = null, leased_until = now()"
    " where target_id = %(target_id)s and lease = %(lease)s"
)
FORGET_TARGET = (
    "delete from relay.alert_targets where target_id = %(target_id)s and lease = %(lease)s"
)
# When the next one can be claimed that cannot be claimed now.
SECONDS_UNTIL_DUE = (
    "select extract(epoch from min(greatest(try_again_at, leased_until)) - now())::float8"
    " from relay.alert_targets where given_up_at is null and"
    " (try_again_at > now() or leased_until > now())"
    " and isfinite(greatest(try_again_at, leased_until))"
)
RESUME_TARGET = (
    "update relay.alert_targets set given_up_at = null, failures = 0, failing_since = null,"
    " try_again_at = null, last_error = null where target_id = %s and given_up_at is not null"
)


@define(eq=False, repr=False)
class AlertTargetTable:
    """The rows of `relay.alert_targets`."""

    _database: Database

    # -- for commands

    async def add(self, new: NewTarget) -> str:
        """Have events delivered from now on; returns the id of the target."""
        target_id = f"{TARGET_ID_PREFIXES.get(new.kind, new.kind)}_{secrets.token_hex(8)}"
        rules = new.rules
        await store_raised(self._database)  # they were raised before

        def insert(connection: Connection) -> None:
            connection.execute(
                "insert into relay.alert_targets (target_id, kind, url, secret, owner_id,"
                " stream_id, events, min_severity, cooldown, stream_prefix, options, position)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, relay.last_outbox_id())",
                [
                    *(target_id, new.kind, new.url, new.secret, new.owner_id, new.stream_id),
                    *([*rules.events], rules.min_severity, rules.cooldown, rules.stream_prefix),
                    json.dumps(dict(new.options)),
                ],
            )
            connection.execute("select pg_notify(%s, 'targets')", [ALERT_CHANNEL])
            record_change(
                connection,
                _audited(new.kind),
                reason=f"made {target_id}",
                user_id=new.owner_id,
                stream_id=new.stream_id,
            )

        await self._database.transact(insert)
        return target_id

    async def all(self, kind: str | None = None) -> list[tuple[AlertTarget, int]]:
        """All targets, or those of a kind, each with the number of events that wait for it, up to
        a thousand."""
        idle: set[str] = set()

        def count(connection: Connection, target: AlertTarget) -> int:
            if target.target_id in idle:
                return 0
            bounds = Bounds.of(target, target.position, MAX_ALERT_ID, MAX_COUNTED_EVENTS)
            waiting = 0
            if ids := alert_ids(target):
                counting = f"select count(*) from ({ids}) as behind"  # noqa: S608 (constants)
                waiting += connection.execute(counting, bounds.values).fetchall()[0][0]
            if events := event_rows(target):
                counting = f"select count(*) from ({events}) as behind"  # noqa: S608 (constants)
                waiting += connection.execute(counting, bounds.values).fetchall()[0][0]
            return min(waiting, MAX_COUNTED_EVENTS)

        def select(connection: Connection) -> list[tuple[AlertTarget, int]]:
            rows = connection.execute(
                f"select {ALERT_TARGET_COLUMNS} from relay.alert_targets"  # noqa: S608 (constants)
                " where kind = coalesce(%s, kind) order by created_at, target_id",
                [kind],
            )
            targets = [read_target(row) for row in rows]
            idle.update(row[0] for row in connection.execute(IDLE_VIEWERS))
            return [(each, count(connection, each)) for each in targets]

        return await self._database.transact(select)

    async def find(self, target_id: str, kind: str | None = None) -> AlertTarget:
        """The target of this id, and of this kind if one is named; `ConfigError` when there is
        none."""

        def select(connection: Connection) -> list[Any]:
            return connection.execute(
                f"select {ALERT_TARGET_COLUMNS} from relay.alert_targets"  # noqa: S608 (constants)
                " where target_id = %s and kind = coalesce(%s, kind)",
                [storable(target_id), kind],
            ).fetchall()

        rows = await self._database.transact(select)
        if not rows:
            raise _unknown(target_id, kind)
        return read_target(rows[0])

    async def remove(self, target_id: str, kind: str | None = None) -> None:
        """Remove a target; `ConfigError` when there is none."""

        def delete(connection: Connection) -> bool:
            removed = connection.execute(
                "delete from relay.alert_targets where target_id = %s and kind = coalesce(%s, kind)"
                " returning kind",
                [storable(target_id), kind],
            ).fetchall()
            for (its_kind,) in removed:
                record_change(connection, _audited(its_kind), reason=f"removed {target_id}")
            connection.execute("select pg_notify(%s, 'targets')", [ALERT_CHANNEL])
            return bool(removed)

        if not await self._database.transact(delete):
            raise _unknown(target_id, kind)

    async def resume(self, target_id: str) -> bool:
        """Resume a target that was given up; whether it was."""

        def update(connection: Connection) -> bool:
            connection.execute("select pg_notify(%s, 'targets')", [ALERT_CHANNEL])
            return bool(connection.execute(RESUME_TARGET, [target_id]).rowcount)

        return await self._database.transact(update)

    # -- for the delivery

    async def claim(
        self, lease: UUID, *, lasts: timedelta, room: Mapping[str, int]
    ) -> list[AlertTarget]:
        """Lease targets that have events waiting and that no other relay has leased, at most so
        many of each kind."""

        def update(connection: Connection) -> list[AlertTarget]:
            values = {"lease": lease, "lasts": lasts}
            values |= {"kinds": [*room], "most": [*room.values()]}
            values["viewers"] = room.get(WEBPUSH_KIND, 0)
            return [read_target(row) for row in connection.execute(CLAIM_TARGETS, values)]

        return await self._database.transact(update)

    async def next_due(self) -> float | None:
        """Seconds until a target is to be tried again, or its lease runs out; None when there is
        none."""

        def select(connection: Connection) -> float | None:
            [(seconds,)] = connection.execute(SECONDS_UNTIL_DUE).fetchall()
            return None if seconds is None else float(seconds)

        return await self._database.transact(select)

    async def behind(self, target: AlertTarget, position: int) -> EventPage:
        """The next events after a position, in order, as many as a page may hold: one at least, and
        only one alert when the page cannot be read.

        `StoreRejects` when the next alert cannot be read by any means.
        """

        async def read(most: int) -> EventPage:
            return await self._database.transact(
                lambda connection: read_behind(connection, target, position, most)
            )

        try:
            return await read(OUTBOX_PAGE)
        except (StoreRejects, StoreUnavailable):
            pass
        try:
            return await read(1)
        except (StoreRejects, StoreUnavailable) as failure:
            unreadable = failure
        # Events before that alert can be delivered.
        if page := await self._events_before_alert(target, position):
            return page
        raise unreadable

    async def next_id(self, target: AlertTarget, position: int) -> int | None:
        """The id of the next alert after a position; None when there is none."""

        def select(connection: Connection) -> int | None:
            return next_alert_id(connection, target, position)

        return await self._database.transact(select)

    async def advance(
        self, target: AlertTarget, lease: UUID, progress: OutboxProgress, *, lasts: timedelta
    ) -> bool:
        """Advance the position and renew the lease; False when the lease is lost."""
        values: dict[str, object] = {
            "target_id": target.target_id,
            "lease": lease,
            "lasts": lasts,
            "position": progress.position,
            "delivered": progress.delivered,
            "suppressed": progress.suppressed,
        }

        def update(connection: Connection) -> bool:
            query = RECORD_DELIVERY if progress.delivered else ADVANCE_POSITION
            if not connection.execute(query, values).rowcount:
                return False
            for each in progress.cooldowns:
                row = [each.stream_id, each.kind, each.delivered_id, each.suppressed]
                connection.execute(RECORD_COOLDOWN, [target.target_id, *row])
            return True

        return await self._database.transact(update)

    async def failed(self, target: AlertTarget, lease: UUID, failure: FailedDelivery) -> bool:
        """Put the next attempt off; whether the target is given up, since it fails for too long or
        for good."""
        why = storable(failure.why[:MAX_TARGET_ERROR_LENGTH])
        if not self._database.can_hold(why):
            why = why.encode("ascii", "backslashreplace").decode()
        values = {
            "why": why,
            "pause": failure.pause,
            "give_up_after": failure.give_up_after,
            "for_good": failure.for_good,
        }
        values |= {"target_id": target.target_id, "lease": lease}

        def update(connection: Connection) -> bool:
            return any(row[0] for row in connection.execute(RECORD_FAILURE, values))

        return await self._database.transact(update)

    async def release(self, target: AlertTarget, lease: UUID) -> None:
        """End a lease."""
        await self._execute(RELEASE_LEASE, target, lease)

    async def forget(self, target: AlertTarget, lease: UUID) -> None:
        """Remove a target that is gone for good, and that we have leased."""
        await self._execute(FORGET_TARGET, target, lease)

    async def _events_before_alert(self, target: AlertTarget, position: int) -> EventPage | None:
        """The events before an alert that cannot be read; None if there are none."""

        def select(connection: Connection) -> EventPage | None:
            alert_id = next_alert_id(connection, target, position)
            if alert_id is None:
                return None
            events = read_events(
                connection, target, Bounds.of(target, position, alert_id, OUTBOX_PAGE)
            )
            if not events:
                return None
            cooldowns = read_cooldowns(connection, target, events)
            return EventPage(events, events[-1].event_id, cooldowns)

        return await self._database.transact(select)

    async def _execute(self, query: Any, target: AlertTarget, lease: UUID) -> None:
        given = {"target_id": target.target_id, "lease": lease}

        def update(connection: Connection) -> None:
            connection.execute(query, given)

        await self._database.transact(update)


def read_target(row: Sequence[Any]) -> AlertTarget:
    """The target in a row of `ALERT_TARGET_COLUMNS`."""
    events, min_severity, cooldown, prefix, options, viewer_id, by_session, streams = row[-8:]
    return evolve(
        AlertTarget(*row[:-8]),
        rules=TargetRules(tuple(events), min_severity, cooldown, prefix),
        options=json.loads(options),
        viewer=None if viewer_id is None else TargetViewer(viewer_id, by_session, tuple(streams)),
    )


def _audited(kind: str) -> str:
    """What the audit log calls a target of this kind."""
    return "webhook" if kind == "webhook" else "target"


def _unknown(target_id: str, kind: str | None) -> ConfigError:
    name = "target" if kind is None else kind
    return ConfigError(f"there is no {name} {target_id!r}; `relay {name} list` shows all")
