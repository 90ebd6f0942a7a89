"""Which nodes of a cluster live, and what becomes of those that do not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable

import pytest
import trio
from attrs import define, evolve
from psycopg.conninfo import make_conninfo

from relay.errors import StoreUnavailable
from relay.model.cluster import NODE_TIMEOUT, ClaimRequest, Node, NodeBeat, StreamNews
from relay.postgres.database import Database, open_database
from relay.postgres.notifications import StreamNotifications
from relay.postgres.tables.live_streams import LiveStreamTable
from relay.postgres.tables.nodes import NodeTable
from tests.integration.accounts import Accounts

A, B, C = (
    Node(each, "machine", f"{each}.example:3100", f"/run/{each}", f"certificate of {each}", "1.0")
    for each in "ABC"
)


@define
class Clock:
    """The clock of one process."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        yield database


@pytest.fixture
def rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def others(database: Database) -> NodeTable:
    """The table as other processes see it."""
    return NodeTable(database)


async def pass_time(
    table: NodeTable,
    clock: Clock,
    seconds: float,
    *,
    beating: Iterable[tuple[NodeTable, Node]] = (),
) -> NodeBeat:
    """Let node A live on, and others beside it."""
    end = clock.now + seconds
    while True:
        for other, node in beating:
            await other.beat(node)
        answer = await table.beat(A)
        if clock.now >= end:
            return answer
        clock.now = min(end, clock.now + 2)


async def claim(database: Database, node: Node, *stream_ids: str) -> None:
    asked = [ClaimRequest(each, "ann", True, 1, time.monotonic()) for each in stream_ids]
    answers = await LiveStreamTable(database).claim(node.node_id, asked)
    assert {each.outcome for each in answers} == {"new"}


async def test_nodes_learn_of_each_other(database: Database, others: NodeTable) -> None:
    table = NodeTable(database)
    assert await table.beat(A) == NodeBeat([A], is_new=True)
    assert await others.beat(B) == NodeBeat([A, B], is_new=True)
    leaving = evolve(A, draining=True, address=None)
    assert await table.beat(leaving) == NodeBeat([leaving, B], is_new=False)
    assert await others.beat(B) == NodeBeat([leaving, B], is_new=False)


async def test_only_a_node_that_comes_goes_or_changes_is_told(
    database: Database, others: NodeTable
) -> None:
    async with StreamNotifications(database.address).listen() as listener:
        for change in (
            *(others.beat(B), others.beat(evolve(B, draining=True)), others.leave("B")),
            *(others.beat(B), others.beat(evolve(B, socket=None))),
        ):
            await change
            with trio.fail_after(5):
                assert await listener.receive() == StreamNews(nodes=True)
        await others.beat(evolve(B, socket=None))
        with trio.move_on_after(0.2):
            pytest.fail(f"{await listener.receive()} though nothing has changed")


async def test_a_node_that_leaves_takes_its_streams_with_it(
    database: Database, others: NodeTable
) -> None:
    await others.beat(B)
    await claim(database, B, "porch", "yard")
    await claim(database, C, "garden")
    async with StreamNotifications(database.address).listen() as listener:
        await others.leave("B")
        assert await listener.receive() == StreamNews(frozenset({"porch", "yard"}), nodes=True)
    left = await LiveStreamTable(database).find(["porch", "yard", "garden"])
    assert [each.stream_id for each in left] == ["garden"]
    assert (await others.beat(C)).nodes == [C]


async def test_a_silent_node_is_removed_with_its_streams(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    table = NodeTable(database, clock)
    await others.beat(B)
    await claim(database, B, "porch")
    await table.beat(A)
    answer = await pass_time(table, clock, NODE_TIMEOUT - 0.1, beating=[(others, C)])
    assert answer.nodes == [A, B, C]
    assert await table.reap() == []
    answer = await pass_time(table, clock, 0.1, beating=[(others, C)])
    assert answer.nodes == [A, C]
    async with StreamNotifications(database.address).listen() as listener:
        assert await table.reap() == ["B"]
        assert await listener.receive() == StreamNews(frozenset({"porch"}), nodes=True)
    assert await table.reap() == []
    assert await LiveStreamTable(database).count() == 0
    assert (await others.beat(B)).is_new


async def test_a_node_that_gives_a_sign_of_life_in_the_last_moment_stays(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    table = NodeTable(database, clock)
    await others.beat(B)
    await pass_time(table, clock, NODE_TIMEOUT)
    await others.beat(B)
    await claim(database, B, "porch")
    assert await table.reap() == []
    assert await LiveStreamTable(database).count() == 1
    assert (await table.beat(A)).nodes == [A, B]


async def test_an_outage_of_the_database_kills_nobody(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    table = NodeTable(database, clock)
    await others.beat(B)
    await pass_time(table, clock, NODE_TIMEOUT - 1)
    clock.now += 60
    # The first that is back waits for the others, as long as for any.
    assert (await table.beat(A)).nodes == [A, B]
    assert await table.reap() == []
    await pass_time(table, clock, NODE_TIMEOUT - 0.1)
    assert await table.reap() == []
    await pass_time(table, clock, 0.1)
    assert await table.reap() == ["B"]


async def test_nobody_is_judged_while_no_sign_of_life_can_be_written(
    database: Database, others: NodeTable, postgres_url: str, clock: Clock
) -> None:
    """A database that only answers questions lets nobody else give a sign of life, either."""
    table = NodeTable(database, clock)
    await others.beat(B)
    await pass_time(table, clock, 2)
    url = make_conninfo(postgres_url, options="-c default_transaction_read_only=on")
    async with open_database(url) as reading:
        table._database = reading
        for _ in range(20):
            clock.now += 2
            with pytest.raises(StoreUnavailable):
                await table.beat(A)
            assert await table.reap() == []
    table._database = database
    assert (await table.beat(A)).nodes == [A, B]
    assert await table.reap() == []


@pytest.mark.parametrize("step", ["1 hour", "-1 hour"])
async def test_a_step_of_the_database_s_clock_kills_nobody(
    database: Database, others: NodeTable, rows: Accounts, clock: Clock, step: str
) -> None:
    table = NodeTable(database, clock)
    await others.beat(B)
    await pass_time(table, clock, 4)
    await others.beat(B)
    await table.beat(A)
    # As if the clock had gone the other way.
    rows.execute("update relay.nodes set seen_at = seen_at - %s::interval", step)
    assert (await table.beat(A)).nodes == [A, B]
    assert await table.reap() == []
    answer = await pass_time(table, clock, 2 * NODE_TIMEOUT, beating=[(others, B)])
    assert answer.nodes == [A, B]
    assert await table.reap() == []
    await pass_time(table, clock, NODE_TIMEOUT)
    assert await table.reap() == ["B"]


async def test_a_node_that_starts_does_not_take_the_long_dead_for_alive(
    database: Database, others: NodeTable, rows: Accounts, clock: Clock
) -> None:
    await others.beat(B)
    rows.execute("update relay.nodes set seen_at = now() - interval '16 s'")
    table = NodeTable(database, clock)
    assert (await table.beat(A)).nodes == [A]
    await pass_time(table, clock, NODE_TIMEOUT - 1)
    assert await table.reap() == []  # but it gives them time all the same
    await others.beat(B)
    assert (await table.beat(A)).nodes == [A, B]


async def test_streams_without_a_node_are_removed_in_time(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    """A node that was thought dead has claimed one, and was killed before its next sign of life."""
    table = NodeTable(database, clock)
    await claim(database, B, "porch")
    await claim(database, C, "yard", "zoo")
    await table.beat(A)
    await claim(database, A, "attic")
    await others.beat(C)
    answer = await pass_time(table, clock, NODE_TIMEOUT - 0.1, beating=[(others, C)])
    assert answer.nodes == [A, C]
    assert await table.reap() == []
    await pass_time(table, clock, 0.1, beating=[(others, C)])
    assert await table.reap() == ["B"]
    left = await LiveStreamTable(database).find(["porch", "yard", "zoo", "attic"])
    assert {each.stream_id for each in left} == {"yard", "zoo", "attic"}


async def test_streams_of_a_node_that_comes_back_are_not_those_of_the_dead(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    table = NodeTable(database, clock)
    await others.beat(B)
    await pass_time(table, clock, NODE_TIMEOUT)
    await others.leave("B")  # another node was faster to remove it
    await claim(database, B, "porch")  # and it lives
    assert await table.reap() == []
    assert await LiveStreamTable(database).count() == 1


async def test_many_that_reap_at_once_remove_each_node_once(
    database: Database, others: NodeTable, clock: Clock
) -> None:
    tables = [NodeTable(database, clock) for _ in range(4)]
    await others.beat(B)
    await others.beat(C)
    await claim(database, B, *(f"b{n}" for n in range(30)))
    await claim(database, C, *(f"c{n}" for n in range(30)))
    removed: list[str] = []
    for table in tables:
        await table.beat(A)
    for _ in range(8):
        clock.now += 2
        for table in tables:
            await table.beat(A)

    async def reap(table: NodeTable) -> None:
        removed.extend(await table.reap())

    async with trio.open_nursery() as nursery:
        for table in tables:
            nursery.start_soon(reap, table)
    assert sorted(removed) == ["B", "C"]
    assert await LiveStreamTable(database).count() == 0


async def test_a_node_learns_that_the_tables_were_emptied(
    database: Database, rows: Accounts
) -> None:
    table = NodeTable(database)
    await table.beat(A)
    assert not (await table.beat(A)).is_new
    rows.execute("truncate relay.nodes, relay.live_streams")
    assert await table.beat(A) == NodeBeat([A], is_new=True)


async def test_a_row_that_is_too_large_for_a_node_is_not_read(
    database: Database, rows: Accounts
) -> None:
    table = NodeTable(database)
    await table.beat(A)
    rows.execute(
        "insert into relay.nodes (node_id, machine, certificate, version, draining)"
        " values ('forged', 'machine', repeat('x', 1000000), '1.0', false)"
    )
    assert (await table.beat(A)).nodes == [A]
