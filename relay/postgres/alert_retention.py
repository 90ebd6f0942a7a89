"""Removes alerts that are too old, and those of which a stream has too many. Floor 1.

A batch at a time, each a transaction of its own, under the lock under which alerts are stored: so
whoever stores an alert again by its key finds the earlier one whole or not at all. Streams
remember up to where their alerts were removed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import LiteralString

from attrs import define, frozen

from relay.postgres.alerts import LOCK_ALERTS
from relay.postgres.database import Connection, Database

BATCH = 500
"""Alerts that are removed with one statement."""
STREAMS = 20
"""Streams that are looked at with one."""
NEVER_YOUNGER = timedelta(hours=1)
"""However many there are: who sends an alert again does so within this time."""

# They were accepted in the order of their ids.
TOO_OLD = (
    "select alert_id from (select alert_id, accepted_at from relay.alerts"
    " order by alert_id limit %(most)s) as oldest where accepted_at < now() - %(age)s"
)
TOO_MANY = (
    "select alert_id from relay.alerts where stream_id = %(stream_id)s and alert_id <= %(last)s"
    " and accepted_at < now() - %(age)s order by alert_id limit %(most)s"
)
LAST_OF_TOO_MANY = (
    "select s.stream_id, (select a.alert_id from relay.alerts a where a.stream_id = s.stream_id"
    " order by a.alert_id desc offset %(keep)s limit 1)"
    " from (select stream_id from relay.streams where stream_id > %(after)s"
    " order by stream_id limit %(most)s) as s order by s.stream_id"
)


@frozen
class Excess:
    """What a stream has too much of: its alerts up to this one."""

    stream_id: str
    alert_id: int


@define(eq=False)
class AlertRetention:
    """Takes rows out of `relay.alerts`."""

    _database: Database

    async def remove_old(self, older_than: timedelta) -> int:
        """Remove a batch of the oldest alerts; returns how many. `BATCH`: there may be more."""
        return await self._remove(TOO_OLD, age=older_than)

    async def remove_excess(self, excess: Excess) -> int:
        """Remove a batch of a stream's alerts; returns how many. `BATCH`: there may be more."""
        return await self._remove(
            TOO_MANY, age=NEVER_YOUNGER, stream_id=excess.stream_id, last=excess.alert_id
        )

    async def find_excess(self, keep: int, *, after: str) -> tuple[list[Excess], str | None]:
        """Look at some streams behind the one with the id `after`; returns those with more than so
        many alerts, and the last that was looked at, None when there is no other."""

        def select(connection: Connection) -> list[tuple[str, int | None]]:
            values = {"keep": keep, "after": after, "most": STREAMS}
            return connection.execute(LAST_OF_TOO_MANY, values).fetchall()

        rows = await self._database.transact(select)
        found = [Excess(stream_id, last) for stream_id, last in rows if last is not None]
        return found, rows[-1][0] if rows else None

    async def _remove(self, which: LiteralString, **values: object) -> int:
        query: LiteralString = (
            f"with removed as (delete from relay.alerts where alert_id = any(array({which}))"  # noqa: S608 (constants)
            " returning stream_id, alert_id), marked as (update relay.streams as s"
            " set alerts_removed_to = greatest(s.alerts_removed_to, m.alert_id)"
            " from (select stream_id, max(alert_id) as alert_id from removed group by 1) as m"
            " where s.stream_id = m.stream_id) select count(*) from removed"
        )

        def delete(connection: Connection) -> int:
            connection.execute(LOCK_ALERTS)
            rows = connection.execute(query, {**values, "most": BATCH}).fetchall()
            return int(rows[0][0])

        return await self._database.transact(delete)
