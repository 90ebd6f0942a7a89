"""The table of what is kept with alerts: stills and clips, whose files are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import LiteralString

from attrs import define

from relay.errors import ConfigError
from relay.model.access.identity import Identity
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert
from relay.model.alerts.alert_picture import (
    MAX_PENDING_SECONDS,
    AlertPicture,
    PictureKind,
    PictureName,
    RemovablePicture,
    WhatIsWanted,
)
from relay.postgres.database import Connection, Database
from relay.postgres.tables.alerts.alert_pages import ALL_STREAMS, Scope
from relay.postgres.tables.alerts.alert_rows import OF_THIS_LIFE, PICTURE_STATES

MIN_KEY_BYTES = 32
ABANDONED_AFTER = timedelta(days=7)
_NOTE = """
    insert into relay.alert_pictures (alert_id, still, clip)
    select * from unnest(%s::bigint[], %s::text[], %s::text[])
    on conflict do nothing
"""
# The alert may be there no more; then retention finds the row. It may have no row yet: those that
# SQL has raised.
_RECORD: Mapping[PictureKind, LiteralString] = {
    kind: f"""
    insert into relay.alert_pictures as k (alert_id, owner_id, {kind}, {kind}_bytes, place)
    select * from unnest(
        %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[]
    ) as given (alert_id) order by given.alert_id
    on conflict (alert_id) do update set owner_id = excluded.owner_id,
        {kind} = excluded.{kind}, {kind}_bytes = excluded.{kind}_bytes,
        place = coalesce(excluded.place, k.place)
    """  # noqa: S608 (constants)
    for kind in ("still", "clip")
}
_REMOVABLE: LiteralString = (
    "k.alert_id, k.place, coalesce(k.still, '') <> 'failed' and k.still is not null,"
    " coalesce(k.clip, '') <> 'failed' and k.clip is not null"
)
_GONE: LiteralString = (
    f"select {_REMOVABLE} from relay.alert_pictures k"  # noqa: S608 (constants)
    " where (k.alert_id < extract(epoch from clock_timestamp() - %(age)s) * 1000000"
    " or not exists (select from relay.alerts a where a.alert_id = k.alert_id))"
    " and k.alert_id < extract(epoch from clock_timestamp()) * 1000000"
    f" - {2 * MAX_PENDING_SECONDS} * 1000000 and (k.place is null or k.place = %(place)s"
    " or k.alert_id < extract(epoch from clock_timestamp() - %(longer)s) * 1000000)"
    " order by k.alert_id limit %(most)s"
)
# The oldest, as many as have to go until the newer ones fit.
_EXCESS: LiteralString = (
    f"select {_REMOVABLE} from (select *, sum(still_bytes + clip_bytes)"  # noqa: S608 (constants)
    " over (partition by owner_id order by alert_id desc) as of_owner,"
    " sum(still_bytes + clip_bytes) over (order by alert_id desc) as in_all"
    " from relay.alert_pictures where owner_id is not null) k"
    " where k.still_bytes + k.clip_bytes > 0 and k.place = %(place)s"
    " and (k.of_owner > %(of_owner)s or k.in_all > %(in_all)s)"
    " order by k.alert_id limit %(most)s"
)


@define(eq=False, repr=False)
class AlertPictureTable:
    """The rows of `relay.alert_pictures`; `StoreUnavailable`."""

    _database: Database

    async def record(self, pictures: Sequence[AlertPicture]) -> None:
        """Note that pictures are kept, or that they could not be, in one transaction."""
        by_name = {each.name: each for each in pictures}  # a row is written once in a statement

        def upsert(connection: Connection) -> None:
            for kind, query in _RECORD.items():
                rows = [
                    (name.alert_id, each.owner_id, each.state, each.bytes, each.place)
                    for name, each in by_name.items()
                    if name.kind == kind
                ]
                if rows:
                    connection.execute(query, [list(column) for column in zip(*rows, strict=True)])

        await self._database.transact(upsert)

    async def key(self) -> bytes:
        """The key that signs links to what is kept; `ConfigError` if somebody has removed it, or
        put one in its place with which anybody could sign."""

        def select(connection: Connection) -> bytes:
            rows = connection.execute("select key from relay.picture_key").fetchall()
            return bytes(rows[0][0]) if rows else b""

        key = await self._database.transact(select)
        if len(key) < MIN_KEY_BYTES:
            raise ConfigError(
                f"relay.picture_key must have a key of at least {MIN_KEY_BYTES} random bytes:"
                " docs/clips.md says how to change it"
            )
        return key

    async def find(self, reader: Identity | None, name: PictureName) -> AlertPicture | None:
        """A picture that a reader may see now, of an alert of the stream's present life; None if
        there is none, or never was to be. Without a reader: for somebody who may see it."""
        scope = ALL_STREAMS if reader is None else Scope.of(reader, None)
        kind = name.kind
        query: LiteralString = (
            f"select p.{kind}, p.owner, p.place, p.{kind}_bytes from"  # noqa: S608 (constants)
            f" (select k.place, k.still_bytes, k.clip_bytes, s.owner_id as owner, {PICTURE_STATES}"
            " from relay.alert_pictures k join relay.alerts a on a.alert_id = k.alert_id"
            " join relay.streams s on s.stream_id = a.stream_id"
            f" where k.alert_id = %(alert_id)s and {OF_THIS_LIFE} and {scope.condition}) p"
            f" where p.{kind} is not null"
        )
        values = {**scope.values, "alert_id": name.alert_id}

        def select(connection: Connection) -> AlertPicture | None:
            row = connection.execute(query, values).fetchone()
            if row is None:
                return None
            state, owner_id, place, size = row
            return AlertPicture(name, state, owner_id, place, size)

        return await self._database.transact(select)

    async def usage(self) -> Mapping[str, int]:
        """The bytes that are kept, by the owner of the streams."""

        def select(connection: Connection) -> dict[str, int]:
            rows = connection.execute(
                "select owner_id, sum(still_bytes + clip_bytes)::bigint from relay.alert_pictures"
                " where owner_id is not null group by owner_id"
            )
            return dict(rows.fetchall())

        return await self._database.transact(select)

    async def removable(
        self, place: str, older_than: timedelta, *, most: int
    ) -> list[RemovablePicture]:
        """The oldest of a place whose time is over, or whose alert is there no more, at most
        `most`. Rows of places that nobody looks after are given up a week later."""
        values = {"place": place, "age": older_than, "longer": older_than + ABANDONED_AFTER}
        return await self._select(_GONE, {**values, "most": most})

    async def excess(
        self, place: str, *, of_owner: int, in_all: int, most: int
    ) -> list[RemovablePicture]:
        """The oldest of a place that have to go so that no owner has more bytes than `of_owner`,
        and all together no more than `in_all`; at most `most`."""
        values = {"place": place, "of_owner": of_owner, "in_all": in_all, "most": most}
        return await self._select(_EXCESS, values)

    async def remove(self, alert_ids: Sequence[int]) -> int:
        """Forget what has been removed; returns how many rows there were."""
        return await self._database.transact(
            lambda connection: (
                connection.execute(
                    "delete from relay.alert_pictures where alert_id = any(%s)", [list(alert_ids)]
                ).rowcount
            )
        )

    async def known(self, alert_ids: Sequence[int]) -> set[int]:
        """Those of these alerts that have a row."""

        def select(connection: Connection) -> set[int]:
            rows = connection.execute(
                "select alert_id from relay.alert_pictures where alert_id = any(%s)",
                [list(alert_ids)],
            )
            return {row[0] for row in rows}

        return await self._database.transact(select)

    async def _select(
        self, query: LiteralString, values: Mapping[str, object]
    ) -> list[RemovablePicture]:
        def select(connection: Connection) -> list[RemovablePicture]:
            return [RemovablePicture(*row) for row in connection.execute(query, values)]

        return await self._database.transact(select)


def note_wanted(
    connection: Connection,
    alerts: Sequence[NewAlert],
    stored: Sequence[StoredAlert | NoRoom | None],
    what_is_wanted: WhatIsWanted,
) -> None:
    """Note what is to be kept with alerts that are being stored, in their transaction."""
    pending: list[tuple[int, str | None, str | None]] = []
    for alert, outcome in zip(alerts, stored, strict=True):
        if not isinstance(outcome, StoredAlert) or not outcome.fresh:
            continue
        if wanted := what_is_wanted(alert.stream_id, asked=alert.frame):
            still = "pending" if wanted.still else None
            pending.append((outcome.alert_id, still, "pending" if wanted.clip else None))
    if pending:
        connection.execute(_NOTE, [list(column) for column in zip(*pending, strict=True)])
