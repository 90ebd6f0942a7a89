"""The owners of streams, for operators: list, transfer, free, and reclaim after deletion."""

from __future__ import annotations

from datetime import timedelta

from attrs import define
from psycopg import sql

from relay.errors import ConfigError
from relay.model.access.operator import Operator, OwnedStream
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.notifications import ALERT_CHANNEL
from relay.postgres.tables.alerts.alerts import LOCK_ALERTS
from relay.postgres.tables.audit import record_change
from relay.postgres.tables.sessions.better_auth import AuthTable

RECLAIM_BATCH = 100
LIST_STREAMS = (
    "select s.stream_id, s.owner_id, s.life_began_at, d.deleted_at from relay.streams s"
    " left join relay.deleted_owners d on d.user_id = s.owner_id and s.owner_by_session"
    " where s.stream_id > %(after)s and (%(owner_id)s::text is null or s.owner_id = %(owner_id)s)"
    " and (not %(gone)s or d.deleted_at is not null) order by s.stream_id limit %(most)s"
)
# Only owners who had a row, and came with its sessions. Who registers with a JWT may have the id of
# a row by accident.
FIND_ABANDONED = """
    select s.stream_id, s.owner_id from relay.streams s
    join relay.deleted_owners d on d.user_id = s.owner_id
    where s.owner_by_session and d.deleted_at < now() - %(age)s
        and not exists (select from {user} u where {id} = s.owner_id)
    order by d.deleted_at, s.stream_id limit %(most)s for no key update of s
"""
FORGET_WITHOUT_STREAMS = (
    "delete from relay.deleted_owners d where deleted_at < now() - %s"
    " and not exists (select from relay.streams s where s.owner_id = d.user_id)"
)


@define(eq=False, repr=False)
class StreamOwnershipTable:
    """The owners in `relay.streams`, as an operator changes them."""

    _database: Database
    _users: AuthTable | None
    """None: users come from the application, which is asked about tokens, and are never gone."""

    async def all(
        self, *, owner_id: str | None = None, gone: bool = False, after: str = "", most: int
    ) -> list[OwnedStream]:
        """Streams in the order of their ids, those that follow `after`: of one owner, or only those
        whose owner is gone."""
        values = {
            "owner_id": None if owner_id is None else storable(owner_id),
            "gone": gone,
            "after": storable(after),
            "most": most,
        }

        def select(connection: Connection) -> list[OwnedStream]:
            return [OwnedStream(*row) for row in connection.execute(LIST_STREAMS, values)]

        return await self._database.transact(select)

    async def transfer(
        self,
        stream_id: str,
        user_id: str,
        *,
        with_history: bool = False,
        by: Operator | None = None,
    ) -> str | None:
        """Give a stream to a user, and return the owner before; that begins another life of it,
        unless its history comes along. `ConfigError` when there is no such stream."""

        def update(connection: Connection) -> str | None:
            if with_history:
                # The database does so, too; in this order, it does not wait in a circle.
                connection.execute(LOCK_ALERTS)
            before = lock_stream(connection, stream_id)
            if before == user_id:
                return before
            if with_history:
                connection.execute("select set_config('relay.with_history', %s, true)", [stream_id])
            connection.execute(
                "update relay.streams set owner_id = %s where stream_id = %s",
                [user_id, stream_id],
            )
            history = ", with history" if with_history else ""
            record_change(
                connection,
                "transfer",
                reason=f"from {before or 'nobody'}{history}",
                user_id=user_id,
                stream_id=stream_id,
                by=by,
            )
            return before

        if with_history:  # each of its alerts is a row to change, which takes a while
            # `StoreRejects` for an id that cannot be stored.
            await self._database.transact(lambda each: each.execute("select %s::text", [user_id]))
            return await self._database.transact_unhurried(update)
        return await self._database.transact(update)

    async def free(self, stream_id: str, *, by: Operator | None = None) -> str | None:
        """Take a stream from its owner, who is returned: the next user that registers it becomes
        its owner. `ConfigError` when there is no such stream."""

        def update(connection: Connection) -> str | None:
            before = lock_stream(connection, stream_id)
            if before is not None:
                _free(connection, stream_id, before, reason="freed", by=by)
            return before

        return await self._database.transact(update)

    async def reclaim(self, age: timedelta) -> list[str]:
        """Free some streams whose owner was deleted at least this long ago; returns their ids."""
        if self._users is None:
            return []
        find = sql.SQL(FIND_ABANDONED).format(
            user=self._users.identifier, id=self._users["id"].as_text("u")
        )

        def update(connection: Connection) -> list[str]:
            found = connection.execute(find, {"age": age, "most": RECLAIM_BATCH}).fetchall()
            for stream_id, owner_id in found:
                _free(connection, stream_id, owner_id, reason="the owner is gone", by=RECLAIMER)
            if not found:
                connection.execute(FORGET_WITHOUT_STREAMS, [age])
            return [stream_id for stream_id, _ in found]

        return await self._database.transact(update)


# So that what brokers retain of the stream is removed at once.
TELL_OF_WITHDRAWAL = (
    "select pg_notify(%s, 'targets')"
    " where exists (select from relay.mqtt_streams where stream_id = %s)"
)
RECLAIMER = Operator(service="", address="")
"""relay itself."""


def lock_stream(connection: Connection, stream_id: str) -> str | None:
    """Keep others from changing the owner, who is returned; alerts of the stream go on.
    `ConfigError` when there is no such stream."""
    row = connection.execute(
        "select owner_id from relay.streams where stream_id = %s for no key update",
        [storable(stream_id)],
    ).fetchone()
    if row is None:
        raise ConfigError(f"there is no stream {stream_id!r}; `relay stream list` shows all")
    owner_id: str | None = row[0]
    return owner_id


def _free(
    connection: Connection, stream_id: str, owner_id: str, *, reason: str, by: Operator | None
) -> None:
    connection.execute("update relay.streams set owner_id = null where stream_id = %s", [stream_id])
    connection.execute(TELL_OF_WITHDRAWAL, [ALERT_CHANNEL, stream_id])
    record_change(connection, "free", reason=reason, user_id=owner_id, stream_id=stream_id, by=by)
