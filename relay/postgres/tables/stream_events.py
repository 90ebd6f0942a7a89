"""The tables of stream events: which streams were told to be online, and by which process. See
migration 0021.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import define

from relay.model.targets.stream_event import EventSources, StreamPresence
from relay.postgres.database import Connection, Database

BEAT_SOURCE = (
    "insert into relay.event_sources as s (source) values (%s)"
    " on conflict (source) do update set seen_at = clock_timestamp() returning s.xmax = 0"
)
WANTS_EVENTS = "select exists (select from relay.alert_targets where events <> '{alert}')"
OTHER_SOURCES = (
    "select t.source, s.seen_at from (select distinct source from relay.told_streams) t"
    " left join relay.event_sources s on s.source = t.source where t.source <> %s"
)
TELL_STREAMS = (
    "select told_stream, told_watched from relay.tell_streams(%s, %s::text[], %s::text[],"
    " %s::bigint[], %s::bigint[], %s::boolean[], %s::boolean[], %s)"
)
END_SOURCE = (
    "select relay.tell_streams(%(source)s, array_agg(stream_id), array_agg(owner_id),"
    " array_agg(epoch), array_agg(term), array_agg(false), array_agg(null::boolean), false)"
    " from relay.told_streams where source = %(source)s having count(*) > 0"
)
REMOVE_SOURCE = (
    "delete from relay.event_sources where source = %s and seen_at is not distinct from %s"
)
IS_KNOWN = "select exists (select from relay.event_sources where source = %s)"
FORGET_TOLD = (
    "delete from relay.told_streams"
    " where not exists (select from relay.alert_targets where events <> '{alert}')"
)
# The newest stays: ids have to grow also when the clock steps back behind it.
PRUNE_STREAM_EVENTS = (
    "delete from relay.stream_events"
    " where event_id < (extract(epoch from clock_timestamp()) - %s) * 1000000"
    " and event_id < (select max(event_id) from relay.stream_events)"
)
NO_WAIT = "set local synchronous_commit = off"


@define(eq=False, repr=False)
class StreamEventTable:
    """The rows of `relay.told_streams` and `relay.event_sources`. All methods raise
    `StoreUnavailable`."""

    _database: Database

    async def beat(self, source: str) -> EventSources:
        """Say that a process lives, if any target wants stream events, and learn of others."""

        def beat(connection: Connection) -> EventSources:
            connection.execute(NO_WAIT)
            [(wanted,)] = connection.execute(WANTS_EVENTS).fetchall()
            if not wanted:
                return EventSources(wanted=False)
            [(is_new,)] = connection.execute(BEAT_SOURCE, [source]).fetchall()
            others = dict(connection.execute(OTHER_SOURCES, [source]).fetchall())
            return EventSources(True, is_new, others)  # noqa: FBT003 (as it is defined)

        return await self._database.transact(beat)

    async def tell(
        self, source: str, streams: Sequence[StreamPresence], *, quietly: bool = False
    ) -> dict[str, bool]:
        """Store what has changed of these streams, each of which comes once, as events. Returns
        whether each is watched, of those that are online and that this process has."""
        known = [each for each in streams if self._database.can_hold(each.owner_id)]

        def tell(connection: Connection) -> dict[str, bool]:
            rows = connection.execute(
                TELL_STREAMS,
                [
                    source,
                    [each.stream_id for each in known],
                    [each.owner_id for each in known],
                    [each.epoch for each in known],
                    [each.term for each in known],
                    [each.online for each in known],
                    [each.watched for each in known],
                    quietly,
                ],
            )
            return dict(rows.fetchall())

        return await self._database.transact(tell) if known else {}

    async def end_source(self, source: str, seen_at: datetime | None) -> bool:
        """End the streams of a process that is dead; False if it has given a sign of life since
        this one, or had one where None is named."""

        def end(connection: Connection) -> bool:
            removed = connection.execute(REMOVE_SOURCE, [source, seen_at]).rowcount
            if not removed:
                [(is_known,)] = connection.execute(IS_KNOWN, [source]).fetchall()
                if is_known:
                    return False
            connection.execute(END_SOURCE, {"source": source})
            return True

        return await self._database.transact(end)

    async def forget_told(self) -> None:
        """Forget what was told, unless a target wants stream events."""

        def delete(connection: Connection) -> None:
            connection.execute(FORGET_TOLD)

        await self._database.transact(delete)

    async def prune(self, older_than: float) -> int:
        """Remove the events that are older than so many seconds; returns how many."""

        def delete(connection: Connection) -> int:
            return connection.execute(PRUNE_STREAM_EVENTS, [older_than]).rowcount

        return await self._database.transact(delete)
