"""The table of grants: which users may watch the streams of others.

Grants are read with the sessions (`sessions.py`); a change notifies the running relays.
"""

from __future__ import annotations

from datetime import datetime

from attrs import define, frozen

from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.postgres.tables.audit import record_change


@frozen
class Grant:
    """The permission of a user to watch a stream."""

    user_id: str
    stream_id: str
    """Or `ANY_STREAM`."""
    granted_at: datetime


@define(eq=False, repr=False)
class Grants:
    """The rows of `relay.grants`."""

    _database: Database

    async def grant(self, user_id: str, stream_id: str) -> bool:
        """Let a user watch a stream; False if there is such a grant."""

        def insert(connection: Connection) -> bool:
            cursor = connection.execute(
                "insert into relay.grants (user_id, stream_id) values (%s, %s)"
                " on conflict do nothing",
                [user_id, stream_id],
            )
            if cursor.rowcount:
                record_change(
                    connection, "grant", reason="made", user_id=user_id, stream_id=stream_id
                )
            return cursor.rowcount > 0

        return await self._database.transact(insert)

    async def revoke(self, user_id: str, stream_id: str) -> bool:
        """Remove a grant; False if there is none."""

        def delete(connection: Connection) -> bool:
            cursor = connection.execute(
                "delete from relay.grants where user_id = %s and stream_id = %s",
                [storable(user_id), storable(stream_id)],
            )
            if cursor.rowcount:
                record_change(
                    connection, "grant", reason="revoked", user_id=user_id, stream_id=stream_id
                )
            return cursor.rowcount > 0

        return await self._database.transact(delete)

    async def all(self, *, user_id: str | None = None, stream_id: str | None = None) -> list[Grant]:
        """All grants, or those to one user, or those of one stream."""

        def select(connection: Connection) -> list[Grant]:
            rows = connection.execute(
                "select user_id, stream_id, granted_at from relay.grants"
                " where user_id = coalesce(%s, user_id) and stream_id = coalesce(%s, stream_id)"
                " order by user_id, stream_id",
                [user_id, stream_id],
            )
            return [Grant(*row) for row in rows]

        return await self._database.transact(select)
