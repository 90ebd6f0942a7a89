"""Which node of a cluster has which stream: claims, what becomes of them, and who is told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from attrs import evolve
from psycopg import sql
from psycopg.conninfo import make_conninfo

from relay.errors import StoreForbids
from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import ClaimRequest, HeldStream, LiveStream, StreamClaim, StreamNews
from relay.postgres.database import Connection, Database, open_database
from relay.postgres.notifications import (
    MAX_NEWS_IDS,
    STREAM_CHANNEL,
    StreamNewsListener,
    StreamNotifications,
)
from relay.postgres.tables.live_streams import LiveStreamTable
from relay.postgres.tables.streams import StreamTable
from relay.protocol.messages import StreamStatus
from tests.integration.accounts import Accounts
from tests.integration.conftest import PostgresServer
from tests.integration.database_queries import ask, do

ALL = VisibleStreams(True, None, frozenset(), ())
NOW_MS = "select floor(extract(epoch from clock_timestamp()) * 1000)::bigint"


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url, pool_size=6) as database:
        yield database


@pytest.fixture
def table(database: Database) -> LiveStreamTable:
    return LiveStreamTable(database)


@pytest.fixture
def rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)


def request(
    stream_id: str, user_id: str = "ann", *, ago: float = 0.0, connection: int = 1, **more: Any
) -> ClaimRequest:
    by_session = more.pop("by_session", True)
    accepted_at = time.monotonic() - ago
    return ClaimRequest(stream_id, user_id, by_session, connection, accepted_at, **more)


async def claim(table: LiveStreamTable, node_id: str, one: ClaimRequest) -> StreamClaim:
    (answer,) = await table.claim(node_id, [one])
    return answer


async def find(table: LiveStreamTable, stream_id: str) -> LiveStream:
    (found,) = await table.find([stream_id])
    return found


# -- one claim


async def test_a_stream_that_is_not_live_is_new(table: LiveStreamTable, rows: Accounts) -> None:
    answer = await claim(table, "A", request("porch", metadata={"zone": 3}))
    assert answer == StreamClaim("porch", "new", "ann", answer.term, answer.epoch)
    assert await find(table, "porch") == LiveStream(
        "porch", "ann", "A", answer.term, answer.epoch, StreamStatus.ONLINE, {"zone": 3}
    )
    owners = rows.execute("select owner_id, owner_by_session from relay.streams")
    assert owners == [("ann", True)]
    assert await table.count() == 1


async def test_a_stream_goes_on_when_its_phone_comes_back_to_the_same_node(
    table: LiveStreamTable,
) -> None:
    first = await claim(table, "A", request("porch"))
    again = await claim(table, "A", request("porch", connection=2, metadata={"zone": 4}))
    assert again == evolve(first, outcome="kept")
    assert (await find(table, "porch")).metadata == {"zone": 4}


async def test_a_stream_moves_with_its_phone_in_the_same_epoch(table: LiveStreamTable) -> None:
    first = await claim(table, "A", request("porch", ago=9, connection=70))
    moved = await claim(table, "B", request("porch", ago=1))
    assert moved == StreamClaim("porch", "moved", "ann", moved.term, first.epoch, before="A")
    assert moved.term > first.term
    found = await find(table, "porch")
    assert (found.node_id, found.term, found.epoch) == ("B", moved.term, first.epoch)
    back = await claim(table, "A", request("porch", connection=71))
    assert (back.outcome, back.before) == ("moved", "B")
    assert back.term > moved.term


async def test_a_connection_of_another_node_that_was_accepted_earlier_is_superseded(
    table: LiveStreamTable,
) -> None:
    first = await claim(table, "A", request("porch", ago=1, connection=5))
    late = await claim(table, "B", request("porch", ago=9, connection=99))
    assert late == StreamClaim("porch", "superseded", "ann")
    assert (await find(table, "porch")).node_id == "A"
    # The later one may ask once more.
    assert await claim(table, "A", request("porch", connection=5)) == evolve(first, outcome="kept")


async def test_on_one_node_the_number_of_a_connection_decides(table: LiveStreamTable) -> None:
    await claim(table, "A", request("porch", ago=9, connection=5))
    assert (await claim(table, "A", request("porch", connection=4))).outcome == "superseded"


async def test_a_moment_in_the_future_of_a_stepped_clock_keeps_nobody_out(
    table: LiveStreamTable, rows: Accounts
) -> None:
    await claim(table, "A", request("porch"))
    rows.execute("update relay.live_streams set accepted_at = now() + interval '1 hour'")
    assert (await claim(table, "B", request("porch", ago=9))).outcome == "moved"
    assert (await claim(table, "C", request("porch", ago=20))).outcome == "superseded"


async def test_time_spent_waiting_for_another_claim_does_not_count(
    table: LiveStreamTable, postgres_url: str, rows: Accounts
) -> None:
    """A connection whose claim has to wait does not become the later one by that."""
    await claim(table, "A", request("a", ago=9))
    answers: list[StreamClaim] = []

    async def ask_and_wait() -> None:
        answers.extend(await table.claim("B", [request("a"), request("b", connection=2)]))

    with psycopg.connect(postgres_url) as connection:
        connection.execute("select from relay.live_streams for update")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_and_wait)
            with trio.fail_after(5):
                while not rows.execute("select 1 from pg_locks where not granted"):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert (await claim(table, "C", request("b"))).outcome == "new"
            connection.commit()
    assert [each.outcome for each in answers] == ["moved", "superseded"]


async def test_a_stream_of_another_user_is_taken(table: LiveStreamTable) -> None:
    await claim(table, "A", request("porch"))
    taken = StreamClaim("porch", "taken", "ann")
    assert await claim(table, "A", request("porch", "bob", connection=2)) == taken
    assert await claim(table, "B", request("porch", "bob")) == taken


@pytest.mark.parametrize("node_id", ["A", "B"])
async def test_nothing_of_a_former_owner_s_stream_goes_on(
    table: LiveStreamTable, rows: Accounts, node_id: str
) -> None:
    first = await claim(table, "A", request("porch", connection=9))
    rows.execute("update relay.streams set owner_id = 'bob'")
    answer = await claim(table, node_id, request("porch", "bob", ago=5, connection=1))
    assert answer == StreamClaim("porch", "new", "bob", answer.term, answer.epoch)
    assert min(answer.term, answer.epoch) > max(first.term, first.epoch)
    found = await find(table, "porch")
    assert (found.owner_id, found.node_id, found.epoch) == ("bob", node_id, answer.epoch)


async def test_a_user_has_no_more_streams_than_allowed(table: LiveStreamTable) -> None:
    await claim(table, "A", request("a", most=2))
    await claim(table, "B", request("b", most=2))
    await claim(table, "B", request("other", "bob", most=2))
    too_many = await claim(table, "C", request("c", most=2))
    assert too_many == StreamClaim("c", "too_many", "ann")
    assert await table.find(["c"]) == []
    assert (await claim(table, "C", request("a", most=2))).outcome == "moved"  # is one of them
    assert (await claim(table, "C", request("c", most=2, replaced="b"))).outcome == "new"
    assert (await claim(table, "C", request("d"))).outcome == "new"


async def test_a_batch_has_no_more_streams_than_allowed(table: LiveStreamTable) -> None:
    answers = await table.claim("A", [request(each, most=2) for each in "edcba"])
    assert sorted(each.outcome for each in answers) == ["new", "new", *["too_many"] * 3]
    assert await table.count() == 2


# -- owners, as one process alone has them

STATES = {
    "nobody's": [],
    "free": ["insert into relay.streams (stream_id, owner_id) values ('{stream}', null)"],
    "it is not known how they came": [
        "insert into relay.streams (stream_id, owner_id) values ('{stream}', '{user}')"
    ],
    "by session": [
        (
            "insert into relay.streams (stream_id, owner_id, owner_by_session)"
            " values ('{stream}', '{user}', true)"
        )
    ],
    "without a session": [
        (
            "insert into relay.streams (stream_id, owner_id, owner_by_session)"
            " values ('{stream}', '{user}', false)"
        )
    ],
    "gone": [
        (
            "insert into relay.streams (stream_id, owner_id, owner_by_session)"
            " values ('{stream}', '{user}', true)"
        ),
        "insert into relay.deleted_owners (user_id) values ('{user}'), ('other of {user}')",
    ],
    "another's": [
        (
            "insert into relay.streams (stream_id, owner_id, owner_by_session)"
            " values ('{stream}', 'other of {user}', true)"
        ),
        "insert into relay.deleted_owners (user_id) values ('{user}'), ('other of {user}')",
    ],
}


@pytest.mark.parametrize("by_session", [True, False])
@pytest.mark.parametrize("state", STATES)
async def test_owners_are_those_that_one_process_alone_has(
    database: Database, table: LiveStreamTable, rows: Accounts, state: str, by_session: bool
) -> None:
    def seen(way: str) -> list[Any]:
        owners = rows.execute(
            "select replace(owner_id, %s, ''), owner_by_session from relay.streams"
            " where stream_id = %s",
            *(way, way),
        )
        deleted = rows.execute(
            "select replace(user_id, %s, '') from relay.deleted_owners where user_id like %s"
            " order by 1",
            *(way, f"%{way}"),
        )
        return [owners, deleted]

    for way in ("alone", "cluster"):
        await database.transact(do(*(each.format(stream=way, user=way) for each in STATES[state])))
    owner = await StreamTable(database).claim("alone", "alone", by_session=by_session)
    answer = await claim(table, "A", request("cluster", "cluster", by_session=by_session))
    assert answer.owner_id.replace("cluster", "") == owner.replace("alone", "")
    assert answer.outcome == ("taken" if state == "another's" else "new")
    assert seen("cluster") == seen("alone")


async def test_a_role_that_may_not_write_owners_claims_what_is_its_user_s(
    postgres_url: str, postgres_server: PostgresServer, rows: Accounts
) -> None:
    name = f"reader_{time.monotonic_ns()}"
    role = sql.Identifier(name)
    postgres_server.execute(sql.SQL("create role {} login password 'x'").format(role))
    for statement in (
        "grant usage on schema relay to {}; grant select on all tables in schema relay to {}",
        "grant insert, update, delete on relay.live_streams to {}",
        "grant update on relay.claim_locks to {}; grant usage, update on relay.epochs to {}",
        (
            "insert into relay.streams (stream_id, owner_id, owner_by_session)"
            " values ('gone', 'ann', true), ('known', 'bob', null)"
        ),
        "insert into relay.deleted_owners (user_id) values ('ann')",
    ):
        rows.execute(statement.replace("{}", name))
    try:
        url = make_conninfo(postgres_url, user=name, password="x")
        async with open_database(url) as database:
            table = LiveStreamTable(database)
            asked = [request("gone"), request("fresh"), request("known", "bob")]
            answers = await table.claim("A", asked)
            assert [each.outcome for each in answers] == ["new", "forbidden", "new"]
            rows.execute(f"revoke update on relay.epochs from {name}")
            with pytest.raises(StoreForbids):
                await table.claim("B", [request("gone")])
    finally:
        rows.execute(f"drop owned by {name}")
        postgres_server.execute(sql.SQL("drop role {}").format(role))
    assert rows.execute("select user_id from relay.deleted_owners") == [("ann",)]


# -- many claims


async def test_what_cannot_be_stored_fails_no_other_claim(table: LiveStreamTable) -> None:
    asked = [
        request("a"),
        request("nul\0"),
        request("b", "\ud800"),
        request("c", metadata={"size": float("inf")}),
        request("".join(chr(0x4E00 + n * 7 % 9000) for n in range(5000))),
        request("d"),
    ]
    answers = await table.claim("A", asked)
    assert [each.stream_id for each in answers] == [each.stream_id for each in asked]
    assert [each.outcome for each in answers] == ["new", *["rejected"] * 4, "new"]
    assert await table.claim("A", []) == []


async def test_a_thousand_claims_are_answered_in_their_order(table: LiveStreamTable) -> None:
    ids = [f"stream-{n * 7919 % 1000}" for n in range(1000)]
    asked = [request(each, f"user of {each}", connection=n, most=9) for n, each in enumerate(ids)]
    answers = await table.claim("A", asked)
    assert [each.stream_id for each in answers] == ids
    assert [each.owner_id for each in answers] == [each.user_id for each in asked]
    assert {each.outcome for each in answers} == {"new"}
    assert len({each.epoch for each in answers}) == await table.count() == 1000


async def test_the_later_of_two_connections_of_a_batch_has_the_stream(
    table: LiveStreamTable, rows: Accounts
) -> None:
    later, earlier = await table.claim(
        "A", [request("porch", connection=8), request("porch", ago=1, connection=7)]
    )
    assert (earlier.outcome, later.outcome) == ("new", "kept")
    assert rows.execute("select connection from relay.live_streams") == [(8,)]


async def test_batches_in_opposite_order_do_not_lock_each_other_up(table: LiveStreamTable) -> None:
    """Sixty batches for the same ids, with changes between them, in any order."""
    ids = [f"s{n:02}" for n in range(20)]
    terms: dict[str, list[int]] = {each: [] for each in ids}

    async def node(number: int) -> None:
        order = ids[::-1] if number % 2 else ids
        for n in range(10):
            asked = [request(each, connection=n) for each in order]
            answers = await table.claim(f"node-{number}", asked)
            moved = [each for each in answers if each.outcome in {"new", "moved"}]
            for each in moved:
                terms[each.stream_id].append(each.term)
            await table.update(f"node-{number}", [streaming(each) for each in moved[::-1]])
            await table.end(f"node-{number}", [(each.stream_id, each.term) for each in moved[:2]])

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(node, number)
    assert all(len(set(each)) == len(each) for each in terms.values())
    assert all(len(each) > 6 for each in terms.values())
    for found in await table.find(ids):
        assert found.term == max(terms[found.stream_id])


def streaming(answer: StreamClaim) -> LiveStream:
    """A stream that a node has just claimed, a moment later."""
    values = (answer.stream_id, answer.owner_id, "its node", answer.term, answer.epoch)
    return LiveStream(*values, StreamStatus.STREAMING, {"term": answer.term})


async def test_the_limit_of_a_user_is_exact_over_nodes_that_claim_at_once(
    table: LiveStreamTable,
) -> None:
    async def node(number: int) -> None:
        for part in range(3):
            await table.claim(
                f"node-{number}", [request(f"{n}-{number}-{part}", most=7) for n in range(3)]
            )

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(node, number)
    assert await table.count() == 7


# -- epochs


async def test_epochs_grow_over_all_nodes_whatever_the_clock_does(
    database: Database, table: LiveStreamTable
) -> None:
    before = await database.transact(ask(NOW_MS))
    found: list[list[int]] = []

    def several(connection: Connection) -> list[int]:
        query = "select relay.next_epoch() from generate_series(1, 100)"
        return [epoch for (epoch,) in connection.execute(query)]

    async def node() -> None:
        found.extend([await database.transact(several) for _ in range(3)])

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(node)
    assert all(each == sorted(each) for each in found)
    epochs = {epoch for each in found for epoch in each}
    assert len(epochs) == 1500
    assert min(epochs) >= before
    await database.transact(ask("select setval('relay.epochs', %s)", max(epochs) + 10**9))
    later = await claim(table, "A", request("porch"))  # by a clock that was set back
    assert later.epoch == max(epochs) + 10**9 + 1
    assert (await claim(table, "B", request("porch"))).term > later.term


async def test_only_the_node_that_has_a_stream_begins_another_epoch(table: LiveStreamTable) -> None:
    first = await claim(table, "A", request("porch"))
    moved = await claim(table, "B", request("porch"))
    assert await table.renew_epoch("porch", "A", first.term) is None
    assert await table.renew_epoch("porch", "B", first.term) is None
    assert await table.renew_epoch("yard", "B", moved.term) is None
    epoch = await table.renew_epoch("porch", "B", moved.term)
    assert epoch is not None
    assert epoch > first.epoch
    assert (await find(table, "porch")).epoch == epoch


# -- status, end, lists


async def test_only_the_node_that_has_a_stream_changes_and_ends_it(table: LiveStreamTable) -> None:
    await claim(table, "A", request("porch"))
    old = await find(table, "porch")
    await claim(table, "B", request("porch"))
    new = await find(table, "porch")
    streaming = StreamStatus.STREAMING
    await table.update("A", [evolve(old, status=streaming), evolve(new, status=streaming)])
    await table.update("B", [evolve(old, status=streaming)])
    await table.end("A", [("porch", old.term), ("porch", new.term)])
    await table.end("B", [("porch", old.term), ("yard", 1)])
    assert await find(table, "porch") == new
    changed = evolve(new, status=streaming, metadata={"zone": 5})
    broken = evolve(new, stream_id="yard", metadata={"size": float("nan")})
    await table.update("B", [new, broken, changed])
    assert await find(table, "porch") == changed
    await table.end("B", [("porch", new.term)])
    assert await table.find(["porch", "nul\0"]) == []


LISTED = ["Z", "_", "a", "a.b", "a.c", "a:d", "aa", "b", "b-1", "b_1", "ba", "c"]
"""In the order of their bytes, which is not that of any language."""
OWNED = {"a.c", "b", "c", "Z"}


@pytest.mark.parametrize(
    "visible",
    [
        ALL,
        VisibleStreams(False, "ann", frozenset(), ()),
        VisibleStreams(False, None, frozenset({"a", "a.c", "gone", "b_1"}), ()),
        VisibleStreams(False, None, frozenset(), ("a.", "b", "none")),
        VisibleStreams(False, "ann", frozenset({"c", "aa"}), ("a", "a.", "b-")),
        VisibleStreams(False, None, frozenset(), ()),
    ],
    ids=["everything", "owner", "ids", "prefixes", "all of these", "nothing"],
)
async def test_a_list_has_what_may_be_watched_in_pages(
    table: LiveStreamTable, visible: VisibleStreams
) -> None:
    users = {each: "ann" if each in OWNED else "bob" for each in LISTED}
    await table.claim("A", [request(each, user) for each, user in users.items()])
    pages: list[list[str]] = []
    while not pages or pages[-1]:
        after = pages[-1][-1] if pages else ""
        page = await table.listed(visible, after, 2)
        assert all(each.owner_id == users[each.stream_id] for each in page)
        pages.append([each.stream_id for each in page])
    expected = [each for each in LISTED if visible.covers(each, users[each])]
    assert [each for page in pages for each in page] == expected
    assert all(len(page) == 2 for page in pages[:-2])


# -- tables that were emptied


async def test_lost_rows_are_written_again(table: LiveStreamTable, rows: Accounts) -> None:
    await table.claim(
        "A", [request("a", ago=60, connection=4, metadata={"zone": 1}), request("b"), request("c")]
    )
    held = {
        each.stream_id: HeldStream(each, 4, time.monotonic() - 60)
        for each in await table.find(["a", "b", "c"])
    }
    rows.execute("truncate relay.live_streams, relay.nodes")
    later = await claim(table, "B", request("b", ago=1))
    assert later.outcome == "new"
    assert later.term > held["b"].stream.term
    # A node that was cut off has written what it thought that it had.
    rows.execute(
        "insert into relay.live_streams values ('c', 'C', %s, now(), 1, 'ann', 7, 'online')",
        held["c"].stream.term - 1,
    )
    assert await table.restore("A", [*held.values()]) == ["b"]
    assert await find(table, "a") == held["a"].stream
    assert (await find(table, "b")).node_id == "B"
    assert await find(table, "c") == held["c"].stream
    # It is as old as it was.
    assert (await claim(table, "D", request("a", ago=61))).outcome == "superseded"
    assert (await claim(table, "D", request("a", ago=59))).outcome == "moved"


async def test_a_row_that_is_there_is_not_written_again(table: LiveStreamTable) -> None:
    await claim(table, "A", request("a", connection=4))
    found = await find(table, "a")
    old = evolve(found, status=StreamStatus.STREAMING, term=found.term + 1)
    assert await table.restore("A", [HeldStream(old, 9, time.monotonic())]) == []
    assert await find(table, "a") == found
    assert await table.restore("A", []) == []


# -- news


async def news(listener: StreamNewsListener) -> StreamNews:
    with trio.fail_after(10):
        return await listener.receive()


async def test_each_change_is_told_by_the_ids_of_streams(
    database: Database, table: LiveStreamTable
) -> None:
    async with StreamNotifications(database.address).listen() as listener:
        first = await claim(table, "A", request("porch"))
        assert await news(listener) == StreamNews(frozenset({"porch"}))
        found = await find(table, "porch")
        # These change nothing that others see.
        await claim(table, "A", request("porch", connection=2))
        await claim(table, "B", request("porch", "bob"))
        await table.update("A", [found])
        await table.update("B", [evolve(found, metadata={})])
        await table.end("B", [("porch", first.term)])
        await table.restore("A", [HeldStream(found, 2, time.monotonic() - 5)])
        await claim(table, "A", request("marker"))
        assert await news(listener) == StreamNews(frozenset({"marker"}))
        for change in (
            table.claim("A", [request("porch", connection=3, metadata={})]),
            table.update("A", [evolve(found, status=StreamStatus.STREAMING)]),
            table.renew_epoch("porch", "A", first.term),
            table.end("A", [("porch", first.term)]),
            table.restore("A", [HeldStream(found, 2, time.monotonic() - 5)]),
            table.claim("B", [request("porch")]),
        ):
            await change
            assert await news(listener) == StreamNews(frozenset({"porch"}))


async def test_news_of_many_streams_say_that_everything_may_have_changed(
    database: Database, table: LiveStreamTable, postgres_url: str
) -> None:
    ids = [f"{n:02}{'x' * 126}" for n in range(51)]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"listen {STREAM_CHANNEL}".encode())
        async with StreamNotifications(database.address).listen() as listener:
            await table.claim("A", [request(each) for each in ids[:50]])
            assert await news(listener) == StreamNews(frozenset(ids[:50]))
            await table.claim("B", [request(each) for each in ids])
            assert await news(listener) == StreamNews(everything=True)
        payloads = [each.payload for each in connection.notifies(timeout=5, stop_after=2)]
    assert len(payloads) == 2
    assert all(len(each) < 7000 for each in payloads)


async def test_long_ids_of_somebody_else_s_rows_break_no_notification(database: Database) -> None:
    tell = ask("select relay.notify_of_streams(%s::text[])", ["y" * 900] * 40 + ["z" * 9])
    async with StreamNotifications(database.address).listen() as listener:
        await database.transact(tell)
        assert await news(listener) == StreamNews(frozenset({"z" * 9}))
        await database.transact(ask("select relay.notify_of_streams(%s::text[])", ["y" * 9000]))
        assert await news(listener) == StreamNews(everything=True)


async def test_forged_news_are_harmless(
    database: Database, table: LiveStreamTable, rows: Accounts
) -> None:
    async with StreamNotifications(database.address).listen() as listener:
        for payload in (
            *("", "x", "streams", "streams:", "streams:,,", "streams:a b,\n,{},ü", "everything:x"),
            f"streams:{'x' * 129}",
            '[["porch", "eve", "B", 99, 1, "online"]]',
        ):
            rows.execute("select pg_notify(%s, %s)", STREAM_CHANNEL, payload)
        rows.execute("select pg_notify(%s, 'streams:porch,a b,yard')", STREAM_CHANNEL)
        assert await news(listener) == StreamNews(frozenset({"porch", "yard"}))
        rows.execute("select pg_notify(%s, 'node:anything')", STREAM_CHANNEL)
        assert await news(listener) == StreamNews(nodes=True)
        many = [f"{n:x}" for n in range(MAX_NEWS_IDS + 1)]
        rows.execute("select pg_notify(%s, %s)", STREAM_CHANNEL, f"streams:{','.join(many)}")
        assert await news(listener) == StreamNews(everything=True)


async def test_only_an_owner_waits_for_the_disk(database: Database) -> None:
    def setting(connection: Connection) -> Any:
        connection.execute(
            "select relay.claim_streams('A', '{porch}', '{ann}', '{t}', '{1}', '{0}', '{null}',"
            " '{null}', '{null}')"
        )
        return connection.execute("show synchronous_commit").fetchall()[0][0]

    assert await database.transact(setting) == "on"
    assert await database.transact(setting) == "off"
    assert await database.transact(ask("show synchronous_commit")) == "on"


@pytest.mark.parametrize(
    "metadata",
    [
        "[1]",
        "7",
        '"text"',
        "null",
        "1" * 5000,
        '{"size": ' + "1" * 5000 + "}",
        "[" * 3000 + "]" * 3000,
        '{"a": ' * 1500 + "1" + "}" * 1500,
        '{"a": ' * 33 + "1" + "}" * 33,
        '{"size": 123456789012345678901234567890}',
        '{"a": [' + "1," * 5000 + "1]}",
        r'{"a": "\ud800"}',
        '{"a": "' + "x" * 1_000_000 + '"}',
    ],
    ids=[
        "list",
        "number",
        "text",
        "null",
        "long",
        "long in it",
        "deep",
        "deep in it",
        "deeper than a client's",
        "large number",
        "many values",
        "half",
        "large",
    ],
)
async def test_metadata_that_no_relay_has_written_fails_nobody(
    table: LiveStreamTable, rows: Accounts, metadata: str
) -> None:
    await table.claim("A", [request("porch"), request("yard", metadata={"zone": 1})])
    rows.execute("update relay.live_streams set metadata = %s where stream_id = 'porch'", metadata)
    found = {each.stream_id: each.metadata for each in await table.find(["porch", "yard"])}
    assert found == {"porch": None, "yard": {"zone": 1}}
    assert len(await table.listed(ALL, "", 10)) == 2


async def test_a_list_of_streams_with_large_metadata_is_read_in_parts(
    table: LiveStreamTable, rows: Accounts
) -> None:
    large = {"note": "x" * 60_000}
    names = [f"door-{number:03}" for number in range(300)]
    await table.claim("A", [request(each, metadata=large) for each in names])
    found: list[str] = []
    parts = 0
    while part := await table.listed(ALL, found[-1] if found else "", 1000):
        assert sum(len(each.metadata["note"]) for each in part if each.metadata) < 10_000_000
        found += [each.stream_id for each in part]
        parts += 1
    assert found == names
    assert parts > 1


async def test_a_long_list_of_small_streams_comes_at_once(table: LiveStreamTable) -> None:
    names = [f"door-{number:04}" for number in range(450)]
    await table.claim("A", [request(each) for each in names])
    assert [each.stream_id for each in await table.listed(ALL, "", 400)] == names[:400]
    mine = VisibleStreams(False, "ann", frozenset(names[:5]), ("door-00",))
    assert [each.stream_id for each in await table.listed(mine, "", 1000)] == names


async def test_lists_leave_connections_for_others(
    table: LiveStreamTable, database: Database, postgres_url: str
) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("lock table relay.live_streams in access exclusive mode")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(table.listed, ALL, "", 10)
            await trio.testing.wait_all_tasks_blocked(0.1)
            with trio.fail_after(5):
                await database.check()
            connection.rollback()


async def test_a_node_that_lost_nothing_writes_nothing_again(
    table: LiveStreamTable, rows: Accounts
) -> None:
    await table.claim("A", [request("porch", metadata={"zone": 1}), request("yard")])
    held = [HeldStream(each, 1, 0.0) for each in await table.find(["porch", "yard"])]
    locks = "select stream_id from relay.live_streams where xmax <> 0"
    rows.execute("delete from relay.live_streams where stream_id = 'yard'")
    assert await table.restore("A", held) == []
    assert len(await table.find(["porch", "yard"])) == 2
    assert rows.execute(locks) == []
    assert await table.restore("A", []) == []
