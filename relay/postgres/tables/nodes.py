"""The table of nodes: which relays serve clients together, in migration 0016.

Who lives is seen by `seen_at`, which each node sets every few seconds. That a node is dead is
judged by nobody's clock but the observer's own: its row has not changed for `NODE_TIMEOUT` while
the observer's own signs of life were written without a gap. So a step of the database's clock kills
no node, and neither does an outage of the database: the first node that is back waits for the
others as long as for any.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from attrs import define, evolve, field, frozen

from relay.model.cluster import NODE_TIMEOUT, Node, NodeBeat, SeenNode
from relay.postgres.database import Connection, Database

MAX_BEAT_GAP = 5.0
"""Seconds between two answers to `NodeTable.beat`: over it, the database may have been away."""

MAX_NODES, MAX_NODE_BYTES = 10_000, 16 * 1024
"""Nodes that are read, and the bytes of what one of them says of itself: each node reads all rows
every two seconds, whoever has written them."""

NODE_COLUMNS = "node_id, machine, address, socket, certificate, version, draining"
BEAT = (
    "update relay.nodes set seen_at = clock_timestamp()"
    " where (node_id, machine, address, socket, certificate, version, draining)"
    " is not distinct from (%s, %s, %s::text, %s::text, %s, %s, %s)"
)
JOIN = (
    f"with written as (insert into relay.nodes as n ({NODE_COLUMNS})"  # noqa: S608 (constants)
    " values (%s, %s, %s, %s, %s, %s, %s) on conflict (node_id) do update set"
    " machine = excluded.machine, address = excluded.address, socket = excluded.socket,"
    " certificate = excluded.certificate, version = excluded.version,"
    " draining = excluded.draining, seen_at = clock_timestamp()"
    " returning n.node_id, n.xmax = 0 as is_new)"
    " select is_new, pg_notify('relay_streams', 'node:' || node_id) from written"
)
SELECT_NODES = (
    f"select {NODE_COLUMNS}, seen_at, seen_at > clock_timestamp() - make_interval(secs => %s)"  # noqa: S608 (constants)
    " from relay.nodes where octet_length(concat(node_id, machine, address, socket, certificate,"
    f" version)) <= {MAX_NODE_BYTES} order by node_id limit {MAX_NODES}"
)
SEEN_NODES = (
    f"select {NODE_COLUMNS}, extract(epoch from clock_timestamp() - seen_at)::float8,"  # noqa: S608 (constants)
    " (select count(*) from relay.live_streams l where l.node_id = n.node_id)"
    " from relay.nodes n order by machine, node_id"
)
# Of nodes that are not in the table. By steps from one node to the next in the index: there may be
# many streams, and are few nodes.
SELECT_STRAYS = """
    with recursive ids (node_id) as (
        (select node_id from relay.live_streams order by node_id limit 1)
        union all
        select (
            select l.node_id from relay.live_streams l where l.node_id > ids.node_id
            order by l.node_id limit 1
        ) from ids where ids.node_id is not null
    )
    select node_id from ids where node_id is not null
        and not exists (select from relay.nodes n where n.node_id = ids.node_id)
"""
NO_WAIT_FOR_DISK = "set local synchronous_commit = off"
LOCK_DEAD = (
    "select n.node_id from relay.nodes n"
    " join unnest(%s::text[], %s::timestamptz[]) as dead (node_id, seen_at)"
    " on dead.node_id = n.node_id and dead.seen_at = n.seen_at"
    " order by n.node_id for update of n"
)
REMOVE_NODES = (
    "with gone as (delete from relay.nodes where node_id = any(%s) returning node_id)"
    " select pg_notify('relay_streams', 'node:' || node_id) from gone"
)
REMOVE_STREAMS = (
    "with locked as (select stream_id from relay.live_streams where node_id = any(%s)"
    " order by stream_id for update),"
    " changed as (delete from relay.live_streams l using locked k"
    " where l.stream_id = k.stream_id returning l.stream_id)"
    " select relay.notify_of_streams(array(select stream_id from changed))"
)


@frozen
class Sighting:
    """The last sign of life of another node, as this process has seen it."""

    seen_at: datetime | None
    """By the database's clock; None: the node has streams and no row."""
    since: float
    """When this process saw it first, by its own clock, and without a gap ever since."""
    is_recent: bool
    """Whether it was recent when it was seen first, as far as the database's clock can say. An
    observer that has just started knows no better."""


@define(eq=False, repr=False)
class NodeTable:
    """The rows of `relay.nodes`, and what one process has seen of them. All methods raise
    `StoreUnavailable`."""

    _database: Database
    _clock: Callable[[], float] = time.monotonic
    _sightings: dict[str, Sighting] = field(init=False, factory=dict)
    _asked_at: float = field(init=False, default=0.0)
    """When the last beat was asked for that was answered."""
    _answered_at: float = field(init=False, default=0.0)

    async def beat(self, node: Node) -> NodeBeat:
        """Say that a node lives, every two seconds or so, and learn who else does."""
        values = [
            *(node.node_id, node.machine, node.address, node.socket),
            *(node.certificate, node.version, node.draining),
        ]

        def beat(connection: Connection) -> tuple[bool, list[tuple[Any, ...]], list[str]]:
            connection.execute(NO_WAIT_FOR_DISK)
            is_new = False
            if not connection.execute(BEAT, values).rowcount:
                is_new = bool(connection.execute(JOIN, values).fetchall()[0][0])
            rows = connection.execute(SELECT_NODES, [NODE_TIMEOUT]).fetchall()
            return is_new, rows, [each for (each,) in connection.execute(SELECT_STRAYS)]

        asked_at = self._clock()
        is_new, rows, strays = await self._database.transact(beat)
        seen: dict[str, tuple[datetime | None, bool]] = dict.fromkeys(strays, (None, False))
        seen |= {row[0]: row[-2:] for row in rows if row[0] != node.node_id}
        self._note(seen, asked_at)
        nodes = [Node(*row[:-2]) for row in rows]
        return NodeBeat([each for each in nodes if self._lives(each.node_id)], is_new)

    async def seen(self) -> list[SeenNode]:
        """All nodes, by machine, with what the database knows of them. Changes nothing."""

        def select(connection: Connection) -> list[SeenNode]:
            rows = connection.execute(SEEN_NODES)
            return [SeenNode(Node(*row[:-2]), max(0.0, row[-2]), row[-1]) for row in rows]

        return await self._database.transact(select)

    async def leave(self, node_id: str) -> None:
        """Remove a node and its streams."""

        def delete(connection: Connection) -> None:
            connection.execute(NO_WAIT_FOR_DISK)
            _remove(connection, [node_id])

        await self._database.transact(delete)

    async def reap(self) -> list[str]:
        """Remove the nodes that are dead, and their streams; returns their ids.

        They are those of which this process has seen no sign of life for `NODE_TIMEOUT`, up to its
        last `beat`. One that has given one since stays.
        """
        dead = {
            each: sighting for each, sighting in self._sightings.items() if self._is_dead(sighting)
        }
        if not dead:
            return []

        def delete(connection: Connection) -> list[str]:
            connection.execute(NO_WAIT_FOR_DISK)
            values = [[*dead], [each.seen_at for each in dead.values()]]
            gone = [each for (each,) in connection.execute(LOCK_DEAD, values)]
            for (stray,) in connection.execute(SELECT_STRAYS).fetchall():
                if stray in dead and dead[stray].seen_at is None:
                    gone.append(stray)
            if gone:
                _remove(connection, gone)
            return gone

        gone = await self._database.transact(delete)
        for each in gone:
            self._sightings.pop(each, None)
        return gone

    def _note(self, seen: dict[str, tuple[datetime | None, bool]], asked_at: float) -> None:
        now = self._clock()
        before = self._sightings
        if now - self._answered_at > MAX_BEAT_GAP:
            # Nobody may have been able to give a sign of life in between.
            before = {each: evolve(sighting, since=now) for each, sighting in before.items()}
        self._sightings = {}
        for node_id, (seen_at, is_recent) in seen.items():
            known = before.get(node_id)
            if known is None or known.seen_at != seen_at:
                known = Sighting(seen_at, now, is_recent or known is not None)
            self._sightings[node_id] = known
        self._asked_at, self._answered_at = asked_at, now

    def _lives(self, node_id: str) -> bool:
        """Whether it counts as alive; nothing is noted about the process itself."""
        sighting = self._sightings.get(node_id)
        return sighting is None or (sighting.is_recent and not self._is_dead(sighting))

    def _is_dead(self, sighting: Sighting) -> bool:
        return self._asked_at - sighting.since >= NODE_TIMEOUT


def _remove(connection: Connection, node_ids: list[str]) -> None:
    connection.execute(REMOVE_NODES, [node_ids])
    connection.execute(REMOVE_STREAMS, [node_ids])
