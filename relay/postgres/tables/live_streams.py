"""The table of live streams: which node of a cluster has which, in migration 0016.

Each change notifies the other nodes in its own transaction, see `StreamNotifications`. Rows are
locked in the order of their ids, so that transactions do not lock each other up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, LiteralString, TypeVar

import msgspec
import trio
from attrs import define, field

from relay.errors import StoreRejects, StoreUnavailable
from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import ClaimRequest, HeldStream, LiveStream, StreamClaim
from relay.model.text import storable
from relay.postgres.database import Connection, Database
from relay.protocol.encoding import JSON
from relay.protocol.messages import StreamStatus
from relay.protocol.metadata import InvalidMetadata, decode_metadata

T = TypeVar("T")

LIVE_COLUMNS: LiteralString = (
    "stream_id, owner_id, node_id, term, epoch, status, metadata"  # as `LiveStream` has them
)
MAX_METADATA_TEXT = 256 * 1024
"""Bytes of the metadata of a row: three times what a client may send, since each character may be
written as an escape. More is from somebody else, and is not read."""
MAX_LISTED_BYTES = 1 << 20
"""Bytes of metadata of a list, which ends behind the stream that goes over them."""
LIST_TIMEOUT = 5.0
"""Seconds that a list may wait for others."""
LISTED_AT_ONCE = 128
"""Streams of one query for a list: their metadata may be large."""
READ_COLUMNS: LiteralString = (
    "stream_id, owner_id, node_id, term, epoch, status,"
    f" case when octet_length(metadata::text) <= {MAX_METADATA_TEXT} then metadata::text end"
)
CLAIM_STREAMS = (
    "select place, outcome, owner, term, epoch, node_before"
    " from relay.claim_streams(%s, %s::text[], %s::text[], %s::boolean[], %s::bigint[],"
    " %s::float8[], %s::json[], %s::integer[], %s::text[])"
)
# The server holds a lock of all that notify until a commit has ended: it should not wait for the
# disk, where all that is written may be lost.
NOTIFY: LiteralString = (
    "select set_config('synchronous_commit', 'off', true),"
    " relay.notify_of_streams(array(select stream_id from changed))"
)
RENEW_EPOCH = (
    "with changed as (update relay.live_streams set epoch = relay.next_epoch(),"  # noqa: S608 (constants)
    " status = 'online' where stream_id = %s and node_id = %s and term = %s"
    " returning stream_id, epoch)"
    f" {NOTIFY}, (select epoch from changed)"
)
UPDATE_STREAMS = (
    "with locked as (select l.stream_id, given.status, given.metadata from relay.live_streams l"  # noqa: S608 (constants)
    " join unnest(%s::text[], %s::bigint[], %s::text[], %s::json[])"
    " as given (stream_id, term, status, metadata)"
    " on given.stream_id = l.stream_id and given.term = l.term"
    " where l.node_id = %s and (l.status, l.metadata::text)"
    " is distinct from (given.status, given.metadata::text)"
    " order by l.stream_id for update of l),"
    " changed as (update relay.live_streams l set status = k.status, metadata = k.metadata"
    " from locked k where l.stream_id = k.stream_id returning l.stream_id)"
    f" {NOTIFY}"
)
END_STREAMS = (
    "with locked as (select l.stream_id from relay.live_streams l"  # noqa: S608 (constants)
    " join unnest(%s::text[], %s::bigint[]) as given (stream_id, term)"
    " on given.stream_id = l.stream_id and given.term = l.term"
    " where l.node_id = %s order by l.stream_id for update of l),"
    " changed as (delete from relay.live_streams l using locked k"
    " where l.stream_id = k.stream_id returning l.stream_id)"
    f" {NOTIFY}"
)
RESTORE_STREAMS = (
    f"with changed as (insert into relay.live_streams as l ({LIVE_COLUMNS}"  # noqa: S608 (constants)
    ", connection, accepted_at)"
    " select stream_id, owner_id, %(node_id)s, term, epoch, status, metadata, connection,"
    " statement_timestamp() - make_interval(secs => age)"
    " from unnest(%(stream_ids)s::text[], %(owner_ids)s::text[], %(terms)s::bigint[],"
    " %(epochs)s::bigint[], %(statuses)s::text[], %(metadata)s::json[], %(connections)s::bigint[],"
    " %(ages)s::float8[])"
    " as held (stream_id, owner_id, term, epoch, status, metadata, connection, age)"
    ' order by stream_id collate "C"'
    " on conflict (stream_id) do update set owner_id = excluded.owner_id,"
    " node_id = excluded.node_id, term = excluded.term, epoch = excluded.epoch,"
    " status = excluded.status, metadata = excluded.metadata, connection = excluded.connection,"
    " accepted_at = excluded.accepted_at"
    " where l.node_id <> excluded.node_id and l.term < excluded.term returning l.stream_id)"
    f" {NOTIFY}"
)
# A node looks again and again for what is missing: the rest, which may be much, is not sent.
SELECT_MISSING = (
    "select held.stream_id from unnest(%s::text[], %s::bigint[]) as held (stream_id, term)"
    " left join relay.live_streams l on l.stream_id = held.stream_id"
    " where l.stream_id is null or (l.node_id <> %s and l.term < held.term)"
)
LIST_ALL: LiteralString = (
    f"select {READ_COLUMNS} from relay.live_streams where stream_id > %(after)s"  # noqa: S608 (constants)
    " order by stream_id limit %(most)s"
)
# Each part reads no more rows than the page has.
LIST_VISIBLE: LiteralString = (
    f"select distinct on (stream_id) {READ_COLUMNS} from ("  # noqa: S608 (constants)
    "(select * from relay.live_streams where owner_id = %(owner_id)s"
    " and stream_id > %(after)s order by stream_id limit %(most)s)"
    " union all (select * from relay.live_streams where stream_id = any(%(stream_ids)s)"
    " and stream_id > %(after)s order by stream_id limit %(most)s)"
    " union all (select begins.*"
    " from unnest(%(prefixes)s::text[], %(prefix_ends)s::text[]) as range (low, high)"
    " cross join lateral (select l.* from relay.live_streams l"
    " where l.stream_id >= low and l.stream_id < high and l.stream_id > %(after)s"
    " order by l.stream_id limit %(most)s) begins)"
    ") visible order by stream_id limit %(most)s"
)


@define(eq=False, repr=False)
class LiveStreamTable:
    """The rows of `relay.live_streams`. All methods raise `StoreUnavailable`."""

    _database: Database
    _list_slots: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._list_slots = trio.CapacityLimiter(max(1, self._database.size // 2))

    async def claim(self, node_id: str, requests: Sequence[ClaimRequest]) -> list[StreamClaim]:
        """Decide which of these connections of a node produce streams; the answers come in the
        order of the requests.

        A stream without an owner gets one, as `StreamTable.claim` says. What the database cannot
        store is `rejected`, and fails no other request.
        """
        claims: list[StreamClaim | None] = [None] * len(requests)
        possible = [each for each in enumerate(requests) if self._can_hold(each[1])]

        def claim(connection: Connection, some: Sequence[tuple[int, ClaimRequest]]) -> None:
            answers = _claim(connection, node_id, [request for _, request in some])
            for (place, _), answer in zip(some, answers, strict=True):
                claims[place] = answer

        await self._transact_possible(possible, claim)
        return [
            StreamClaim(request.stream_id, "rejected", "") if answer is None else answer
            for request, answer in zip(requests, claims, strict=True)
        ]

    async def renew_epoch(self, stream_id: str, node_id: str, term: int) -> int | None:
        """Begin another epoch of a stream that this node has, where the node before cannot say how
        far it came; None when the node has it no more."""

        def update(connection: Connection) -> int | None:
            rows = connection.execute(RENEW_EPOCH, [stream_id, node_id, term]).fetchall()
            epoch: int | None = rows[0][2]
            return epoch

        return await self._database.transact(update)

    async def update(self, node_id: str, streams: Sequence[LiveStream]) -> None:
        """Write the status and the metadata of streams, where this node still has them in the same
        term. What the database cannot store is left out."""
        newest = {each.stream_id: each for each in streams}

        def update(connection: Connection, some: Sequence[LiveStream]) -> None:
            connection.execute(
                UPDATE_STREAMS,
                [
                    [each.stream_id for each in some],
                    [each.term for each in some],
                    [each.status.value for each in some],
                    [_json_of(each.metadata) for each in some],
                    node_id,
                ],
            )

        await self._transact_possible([*newest.values()], update)

    async def end(self, node_id: str, ended: Sequence[tuple[str, int]]) -> None:
        """Remove streams, each with its term, where this node still has them in that term."""
        stream_ids, terms = [each for each, _ in ended], [term for _, term in ended]
        await self._database.transact(
            lambda connection: connection.execute(END_STREAMS, [stream_ids, terms, node_id])
        )

    async def find(self, stream_ids: Sequence[str]) -> list[LiveStream]:
        """Those of these streams that are live, in no order."""
        known = [each for each in stream_ids if self._database.can_hold(each)]

        def select(connection: Connection) -> list[LiveStream]:
            rows = connection.execute(
                f"select {READ_COLUMNS} from relay.live_streams where stream_id = any(%s)",  # noqa: S608 (constants)
                [known],
            )
            return [_read(row) for row in rows]

        return await self._database.transact(select)

    async def listed(self, visible: VisibleStreams, after: str, limit: int) -> list[LiveStream]:
        """The first live streams behind the id `after` that somebody may watch, in the bytewise
        order of their ids; fewer than there are where their metadata is large, and none only if
        there are none. Lists use at most half of the connections: others wait for these to log in.
        """
        values = {
            "after": storable(after),
            "owner_id": visible.owner_id,
            "stream_ids": list(visible.stream_ids),
            "prefixes": list(visible.prefixes),
            "prefix_ends": visible.prefix_ends,
        }
        query = LIST_ALL if visible.everything else LIST_VISIBLE

        def select(connection: Connection) -> list[LiveStream]:
            found: list[LiveStream] = []
            size = 0
            while len(found) < limit and size <= MAX_LISTED_BYTES:
                most = min(limit - len(found), LISTED_AT_ONCE)
                rows = connection.execute(query, {**values, "most": most}).fetchall()
                size += sum(len(row[-1] or "") for row in rows)
                found += map(_read, rows)
                if len(rows) < most:
                    break
                values["after"] = rows[-1][0]
            return found

        with trio.move_on_after(LIST_TIMEOUT) as queue:
            await self._list_slots.acquire()
        if queue.cancelled_caught:
            raise StoreUnavailable("too many lists of streams")
        try:
            return await self._database.transact(select, may_be_long=True)
        finally:
            self._list_slots.release()

    async def restore(self, node_id: str, held: Sequence[HeldStream]) -> list[str]:
        """Write the streams of this node again whose rows are gone, as all are after a crash of the
        database. Rows that are there stay, but for those of other nodes with smaller terms.

        Returns the ids of those that another node has now: this one has lost them.
        """

        def select_missing(connection: Connection) -> set[str]:
            streams = [each.stream for each in held]
            rows = connection.execute(
                SELECT_MISSING,
                [[each.stream_id for each in streams], [each.term for each in streams], node_id],
            )
            return {stream_id for (stream_id,) in rows}

        def insert(connection: Connection, some: Sequence[HeldStream]) -> None:
            connection.execute(RESTORE_STREAMS, {"node_id": node_id, **_values(some)})

        def select(connection: Connection) -> list[str]:
            rows = connection.execute(
                "select stream_id from relay.live_streams"
                " where stream_id = any(%s) and node_id <> %s order by stream_id",
                [[each.stream.stream_id for each in held], node_id],
            )
            return [stream_id for (stream_id,) in rows]

        if not held:
            return []
        missing = await self._database.transact(select_missing)
        lost = [each for each in held if each.stream.stream_id in missing]
        await self._transact_possible(lost, insert)
        return await self._database.transact(select)

    async def count(self) -> int:
        def select(connection: Connection) -> int:
            rows = connection.execute("select count(*) from relay.live_streams").fetchall()
            return int(rows[0][0])

        return await self._database.transact(select)

    def _can_hold(self, request: ClaimRequest) -> bool:
        return all(map(self._database.can_hold, (request.stream_id, request.user_id)))

    async def _transact_possible(
        self, items: Sequence[T], work: Callable[[Connection, Sequence[T]], None]
    ) -> None:
        """Run `work` with all items in one transaction, or, where the database rejects one of them,
        with either half, until that one is alone, which is left out."""
        if not items:
            return
        try:
            await self._database.transact(lambda connection: work(connection, items))
        except StoreRejects:
            middle = len(items) // 2
            if middle:
                await self._transact_possible(items[:middle], work)
                await self._transact_possible(items[middle:], work)


def _claim(
    connection: Connection, node_id: str, requests: Sequence[ClaimRequest]
) -> list[StreamClaim]:
    metadata = [_json_of(each.metadata) for each in requests]
    now = time.monotonic()
    rows = connection.execute(
        CLAIM_STREAMS,
        [
            node_id,
            [each.stream_id for each in requests],
            [each.user_id for each in requests],
            [each.by_session for each in requests],
            [each.connection for each in requests],
            [max(0.0, now - each.accepted_at) for each in requests],
            metadata,
            [each.most for each in requests],
            [each.replaced for each in requests],
        ],
    )
    answers: dict[int, StreamClaim] = {}
    for place, outcome, owner_id, *values in rows:
        stream_id = requests[place - 1].stream_id
        answers[place] = StreamClaim(stream_id, outcome, owner_id or "", *values)
    return [answers[place] for place in range(1, len(requests) + 1)]


def _values(held: Sequence[HeldStream]) -> dict[str, list[Any]]:
    streams = [each.stream for each in held]
    values: dict[str, list[Any]] = {
        "stream_ids": [each.stream_id for each in streams],
        "owner_ids": [each.owner_id for each in streams],
        "terms": [each.term for each in streams],
        "epochs": [each.epoch for each in streams],
        "statuses": [each.status.value for each in streams],
        "metadata": [_json_of(each.metadata) for each in streams],
        "connections": [each.connection for each in held],
    }
    now = time.monotonic()
    return {**values, "ages": [max(0.0, now - each.accepted_at) for each in held]}


def _json_of(metadata: dict[str, Any] | None) -> str | None:
    return None if metadata is None else json.dumps(metadata, separators=(",", ":"))


def _read(row: tuple[Any, ...]) -> LiveStream:
    stream_id, owner_id, node_id, term, epoch, status, metadata = row
    known = None if metadata is None else _metadata_of(metadata)
    return LiveStream(stream_id, owner_id, node_id, term, epoch, StreamStatus(status), known)


def _metadata_of(text: str) -> dict[str, Any] | None:
    """What stands in a row; None for what no relay has written there: it fails nobody who reads
    other rows."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return decode_metadata(msgspec.Raw(text.encode()), JSON)
    except (InvalidMetadata, UnicodeEncodeError):
        return None
