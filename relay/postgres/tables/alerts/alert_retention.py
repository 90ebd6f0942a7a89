"""Removes alerts that are too old, too many for their stream, too heavy for their sender, or of a
former owner's life of the stream.

Each batch is a transaction of its own, under the lock under which alerts are stored: so an alert
that is stored again by its key finds the earlier one whole or not at all. Each stream remembers up
to which id its alerts were removed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import LiteralString

from attrs import define

from relay.model.alerts.alert import ExcessAlerts, ExcessBytes
from relay.postgres.database import Connection, Database
from relay.postgres.tables.alerts.alert_bytes import ByteLimits, find_heavy, fold
from relay.postgres.tables.alerts.alerts import LOCK_ALERTS

STREAMS_PER_QUERY = 20
"""Streams that `find_excess` looks at."""
MIN_AGE = timedelta(hours=1)
"""Younger alerts are kept, however many there are: a sender may repeat one within this time."""

# They were accepted in the order of their ids.
TOO_OLD = (
    "select alert_id from (select alert_id, accepted_at from relay.alerts"
    " order by alert_id limit %(most)s) as oldest where accepted_at < now() - %(age)s"
)
TOO_MANY = (
    "select alert_id from relay.alerts where stream_id = %(stream_id)s and alert_id <= %(last)s"
    " and accepted_at < now() - %(age)s order by alert_id limit %(most)s"
)
TOO_HEAVY = (
    "select alert_id from (select alert_id, accepted_at,"
    " sum(bytes) over (order by alert_id) - bytes as before"
    " from (select alert_id, accepted_at, bytes from relay.alerts"
    " where sender = %(sender)s and bytes is not null order by alert_id limit %(most)s) as oldest"
    ") as summed where before < %(excess)s and accepted_at < now() - %(age)s"
)
LAST_OF_TOO_MANY = (
    "select s.stream_id, greatest((select a.alert_id from relay.alerts a"
    " where a.stream_id = s.stream_id order by a.alert_id desc offset %(keep)s limit 1),"
    " (select max(a.alert_id) from relay.alerts a"
    " where a.stream_id = s.stream_id and a.alert_id <= s.alerts_from))"
    " from (select stream_id, alerts_from from relay.streams where stream_id > %(after)s"
    " order by stream_id limit %(most)s) as s order by s.stream_id"
)
# Over for all events behind the target's position. How many were suppressed is told with the next
# event of the stream, if there will be one.
REMOVE_COOLDOWNS = (
    "delete from relay.target_cooldowns where (target_id, stream_id, kind) in"
    " (select c.target_id, c.stream_id, c.kind from relay.target_cooldowns as c"
    " join relay.alert_targets as t on t.target_id = c.target_id"
    " where c.delivered_id + t.cooldown * 1000000::bigint <= t.position"
    " and (c.suppressed = 0 or not exists (select from relay.streams as s"
    " where s.stream_id = c.stream_id and s.owner_id is not null))"
    " limit %s)"
)


@define(eq=False, repr=False)
class AlertPruner:
    """Removes rows of `relay.alerts`."""

    _database: Database
    _limits: ByteLimits | None = None

    async def remove_old(self, older_than: timedelta, *, most: int) -> int:
        """Remove the oldest alerts, at most `most`; returns how many."""
        removed, _ = await self._remove(TOO_OLD, age=older_than, most=most)
        return removed

    async def remove_excess(self, excess: ExcessAlerts, *, most: int) -> int:
        """Remove the oldest alerts of a stream, at most `most`; returns how many."""
        removed, _ = await self._remove(
            TOO_MANY,
            age=MIN_AGE,
            stream_id=excess.stream_id,
            last=excess.alert_id,
            most=most,
        )
        return removed

    async def find_heavy(self) -> list[ExcessBytes]:
        """The senders whose alerts take too many bytes, each with the bytes to free."""
        await fold(self._database)
        return [] if self._limits is None else await find_heavy(self._database, self._limits)

    async def remove_heavy(self, excess: ExcessBytes, *, most: int) -> tuple[int, int]:
        """Remove the oldest alerts of a sender, at most `most`; returns how many, and their
        bytes."""
        return await self._remove(
            TOO_HEAVY, age=MIN_AGE, sender=excess.sender, excess=excess.bytes, most=most
        )

    async def find_excess(self, keep: int, *, after: str) -> tuple[list[ExcessAlerts], str | None]:
        """Look at some of the streams whose ids follow `after`; returns those with more than `keep`
        alerts, and the last id that was looked at, None when there are no more streams."""

        def select(connection: Connection) -> list[tuple[str, int | None]]:
            values = {"keep": keep, "after": after, "most": STREAMS_PER_QUERY}
            return connection.execute(LAST_OF_TOO_MANY, values).fetchall()

        rows = await self._database.transact(select)
        found = [ExcessAlerts(stream_id, last) for stream_id, last in rows if last is not None]
        return found, rows[-1][0] if rows else None

    async def remove_cooldowns(self, *, most: int) -> int:
        """Remove what is known of cooldowns of targets that are over, at most `most`; returns how
        many."""

        def delete(connection: Connection) -> int:
            return connection.execute(REMOVE_COOLDOWNS, [most]).rowcount

        return await self._database.transact(delete)

    async def _remove(self, which: LiteralString, **values: object) -> tuple[int, int]:
        query: LiteralString = (
            f"with removed as (delete from relay.alerts where alert_id = any(array({which}))"  # noqa: S608 (constants)
            " returning stream_id, alert_id, bytes), marked as (update relay.streams as s"
            " set alerts_removed_to = greatest(s.alerts_removed_to, m.alert_id)"
            " from (select stream_id, max(alert_id) as alert_id from removed group by 1) as m"
            " where s.stream_id = m.stream_id)"
            " select count(*), coalesce(sum(bytes), 0)::bigint from removed"
        )

        def delete(connection: Connection) -> tuple[int, int]:
            connection.execute(LOCK_ALERTS)
            [(removed, freed)] = connection.execute(query, values).fetchall()
            return removed, freed

        return await self._database.transact(delete)
