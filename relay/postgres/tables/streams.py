"""The table of streams: each belongs to the first user that registered its id, until an operator
decides otherwise.

A trigger (migration 0012) begins another life of the stream with each change of its owner, whoever
makes it, and notifies the running relays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psycopg
from attrs import define

from relay.postgres.database import Connection, Database

READ_ONLY = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
)
"""An owner may register a stream where nothing can be written."""


@define(eq=False, repr=False)
class StreamTable:
    """The rows of `relay.streams`."""

    _database: Database

    async def claim(self, stream_id: str, user_id: str, *, by_session: bool = True) -> str:
        """The owner of a stream, which becomes `user_id` if it has none.

        `by_session`: whether the user came with a session of Better Auth.
        """

        def claim(connection: Connection) -> str:
            # In this order a known stream, the usual case, costs one query. A change that loses a
            # race waits for the winner's commit, and the next select sees it.
            while True:
                row = connection.execute(
                    "select owner_id, owner_by_session, exists (select from relay.deleted_owners d"
                    " where d.user_id = owner_id) from relay.streams where stream_id = %s",
                    [stream_id],
                ).fetchone()
                if row is None:
                    connection.execute(
                        "insert into relay.streams (stream_id, owner_id, owner_by_session)"
                        " values (%s, %s, %s) on conflict do nothing",
                        [stream_id, user_id, by_session],
                    )
                    continue
                owner_id, owner_by_session, gone = row
                if owner_id is None:
                    connection.execute(
                        "update relay.streams set owner_id = %s, owner_by_session = %s"
                        " where stream_id = %s and owner_id is null",
                        [user_id, by_session, stream_id],
                    )
                    continue
                by_others = owner_by_session is None or (owner_by_session and not by_session)
                if owner_id == user_id and (gone or by_others):
                    with suppress(*READ_ONLY), connection.transaction():
                        _note_presence(connection, stream_id, user_id, by_session=by_session)
                return str(owner_id)

        return await self._database.transact(claim)

    async def owners_of(self, stream_ids: Sequence[str]) -> dict[str, str]:
        """The owners of these streams, without those that have none."""

        def select(connection: Connection) -> dict[str, str]:
            return dict(
                connection.execute(
                    "select stream_id, owner_id from relay.streams"
                    " where stream_id = any(%s) and owner_id is not null",
                    [list(stream_ids)],
                ).fetchall()
            )

        return await self._database.transact(select)


def _note_presence(
    connection: Connection, stream_id: str, user_id: str, *, by_session: bool
) -> None:
    """Note that an owner is there, and how they came."""
    connection.execute(
        "update relay.streams set owner_by_session = coalesce(owner_by_session, true) and %s"
        " where stream_id = %s and owner_id = %s",
        [by_session, stream_id, user_id],
    )
    connection.execute("delete from relay.deleted_owners where user_id = %s", [user_id])
