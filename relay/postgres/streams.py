"""Who owns a stream: the first user that registered its id, for good. Floor 1."""

from __future__ import annotations

from attrs import define

from relay.postgres.database import Connection, Database


@define(eq=False)
class StreamOwners:
    """The owners in `relay.streams`."""

    _database: Database

    async def claim(self, stream_id: str, user_id: str) -> str:
        """The owner of `stream_id`, which is `user_id` if nobody owned it before."""

        def claim(connection: Connection) -> str:
            # In this order: a known stream, the usual case, costs one question. An insert that
            # loses a race waits for the winner's commit, and what comes after it sees the winner.
            while True:
                row = connection.execute(
                    "select owner_id from relay.streams where stream_id = %s", [stream_id]
                ).fetchone()
                if row is not None:
                    return str(row[0])
                connection.execute(
                    "insert into relay.streams (stream_id, owner_id) values (%s, %s)"
                    " on conflict do nothing",
                    [stream_id, user_id],
                )

        return await self._database.transact(claim)
