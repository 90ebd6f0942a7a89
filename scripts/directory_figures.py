"""How fast a cluster's directory of live streams answers; for scripts/figures.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import trio
from psycopg import sql

from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import ClaimRequest
from relay.postgres.database import Database, open_database
from relay.postgres.embedded.embedded import open_embedded
from relay.postgres.notifications import StreamNotifications
from relay.postgres.tables.live_streams import LiveStreamTable

WRITERS = 8
"""Nodes that claim at once; each also listens for news."""
BATCH = 20
"""Claims in one statement."""
STREAMS_OF_A_USER = 5
QUESTIONS = 200
"""Of which the median and the largest but one in a hundred are printed."""

FILL = """
    insert into relay.streams (stream_id, owner_id, owner_by_session)
    select 'stream-' || n, 'user-' || n / {each}, true from generate_series(0, {last} * 2) as n;
    insert into relay.live_streams
        (stream_id, node_id, term, accepted_at, connection, owner_id, epoch, status)
    select 'stream-' || n, 'node-' || n % 8, 1, now() - interval '1 minute', n,
        'user-' || n / {each}, 1, 'streaming' from generate_series(0, {last} - 1) as n;
    analyze relay.streams, relay.live_streams
"""


def directory(streams: int, seconds: float) -> None:
    """With so many live streams, in relay's own PostgreSQL, and each storm for so long."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        trio.run(_measure, Path(folder, "data"), streams, seconds)


async def _measure(data_dir: Path, streams: int, seconds: float) -> None:
    async with (
        open_embedded(data_dir) as url,
        open_database(url, pool_size=WRITERS) as database,
    ):
        fill = sql.SQL(FILL).format(last=streams, each=STREAMS_OF_A_USER)
        await database.transact_unhurried(lambda connection: connection.execute(fill))
        print(f"{streams:,} live streams: answers in ms, median and 99th of 100")
        await _questions(LiveStreamTable(database), streams)
        print(f"claims a second, by {WRITERS} nodes that also listen, {BATCH} at a time")
        async with _listeners(database):
            await _storms(LiveStreamTable(database), streams, seconds)


async def _questions(table: LiveStreamTable, streams: int) -> None:
    def ids(count: int, turn: int) -> list[str]:
        return [f"stream-{(turn * 7919 + n * 104_729) % streams}" for n in range(count)]

    def of_user(turn: int) -> VisibleStreams:
        owner_id, granted = f"user-{turn * 7 % 1000}", frozenset(ids(3, turn))
        return VisibleStreams(
            everything=False, owner_id=owner_id, stream_ids=granted, prefixes=("x", "stream-77")
        )

    everything = VisibleStreams(everything=True, owner_id=None, stream_ids=frozenset(), prefixes=())
    await _time("find 1", lambda turn: table.find(ids(1, turn)))
    await _time("find 100", lambda turn: table.find(ids(100, turn)))
    await _time("find 1,000", lambda turn: table.find(ids(1000, turn)))
    await _time("list 100 of a user", lambda turn: table.listed(of_user(turn), "", 100))
    await _time("list the first 1,000", lambda _: table.listed(everything, "", 1000))


async def _time(what: str, ask: Callable[[int], Awaitable[object]]) -> None:
    times = []
    for turn in range(QUESTIONS):
        start = time.perf_counter()
        await ask(turn)
        times.append((time.perf_counter() - start) * 1000)
    times.sort()
    print(f"  {what:26} {median(times):7.2f} {times[QUESTIONS * 99 // 100]:7.2f}")


async def _storms(table: LiveStreamTable, streams: int, seconds: float) -> None:
    """Claims of streams that other nodes have, of known ones that are not live, and of new ids."""
    await _storm(table, seconds, "that move", lambda n: n % streams)
    await _storm(table, seconds, "not live before", lambda n: streams + n % streams)
    await _storm(table, seconds, "never registered before", lambda n: 10 * streams + n)


async def _storm(
    table: LiveStreamTable, seconds: float, what: str, number: Callable[[int], int]
) -> None:
    claimed = 0
    outcomes: dict[str, int] = {}
    start = time.monotonic()

    async def node(name: int) -> None:
        nonlocal claimed
        while time.monotonic() < start + seconds:
            numbers = [number(claimed + n) for n in range(BATCH)]
            claimed += BATCH
            now = time.monotonic()
            asked = [
                ClaimRequest(
                    f"stream-{each}",
                    f"user-{each // STREAMS_OF_A_USER}",
                    by_session=True,
                    connection=each,
                    accepted_at=now,
                    most=50,
                )
                for each in numbers
            ]
            for answer in await table.claim(f"new-node-{name}", asked):
                outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1

    async with trio.open_nursery() as nursery:
        for name in range(WRITERS):
            nursery.start_soon(node, name)
    rate = sum(outcomes.values()) / (time.monotonic() - start)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"  {what:26} {rate:7,.0f}   ({told})")


@asynccontextmanager
async def _listeners(database: Database) -> AsyncIterator[None]:
    async def listen(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with StreamNotifications(database.address).listen() as listener:
            task_status.started()
            while True:
                await listener.receive()

    async with trio.open_nursery() as nursery:
        for _ in range(WRITERS):
            await nursery.start(listen)
        yield
        nursery.cancel_scope.cancel()
