"""Events of streams, from the hub to a webhook."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from signal import SIGKILL

import pytest
import trio
from attrs import define, evolve, field

from relay.model.targets.alert_target import NewTarget, TargetRules
from relay.model.targets.stream_event import STREAM_EVENT_KINDS, StreamPresence
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.stream_events import StreamEventTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import start_nodes
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, until
from tests.integration.web_server import Request, WebServer, open_web_server, says
from tests.presence_table import PresenceTable

LOOPBACK = ("--webhook-networks", "127.0.0.0/8")
QUICK = ("--offline-grace", "1")
EVERYTHING = TargetRules(events=("alert", *STREAM_EVENT_KINDS), stream_prefix="")
DEAD_AFTER = 60
"""Seconds after which the streams of a process that was killed are told to be offline, at most."""


# -- the table


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        for stream_id in ("door", "gate", "yard"):
            await StreamTable(database).claim(stream_id, "ann")
        yield database


@pytest.fixture
def rows(postgres_url: str) -> Accounts:
    return Accounts(postgres_url)


def stored(rows: Accounts) -> list[str]:
    return [
        f"{stream_id} {kind.removeprefix('stream.')}"
        for stream_id, kind in rows.execute(
            "select stream_id, kind from relay.stream_events order by event_id"
        )
    ]


DOOR = StreamPresence("door", "ann", 7, 0, online=True, watched=False)


@pytest.mark.parametrize("seed", range(2))
async def test_the_table_does_what_the_model_of_the_unit_tests_does(
    database: Database, rows: Accounts, seed: int
) -> None:
    chance, model, table = random.Random(seed), PresenceTable(), StreamEventTable(database)
    await AlertTargetTable(database).add(NewTarget("https://x", "s", rules=EVERYTHING))
    for _ in range(60):
        source = chance.choice("ab")
        streams = [
            StreamPresence(
                *(stream_id, "ann", chance.randrange(3), chance.choice([0, 1, 1, 2])),
                online=chance.random() < 0.7,
                watched=chance.choice([True, False, None]),
            )
            for stream_id in sorted(chance.sample(["door", "gate", "yard"], chance.randint(1, 3)))
        ]
        quietly = chance.random() < 0.1
        expected = await model.tell(source, streams, quietly=quietly)
        told = await table.tell(source, streams, quietly=quietly)
        assert told.items() <= expected.items()
        assert stored(rows) == model.events
        of_rows = rows.execute("select stream_id, source, watched from relay.told_streams")
        assert sorted(of_rows) == sorted(
            (stream_id, who, bool(each.watched)) for stream_id, (who, each) in model.told.items()
        )


async def test_only_what_a_target_wants_is_stored(database: Database, rows: Accounts) -> None:
    table, targets = StreamEventTable(database), AlertTargetTable(database)
    assert not (await table.beat("a")).wanted
    await targets.add(NewTarget("https://x", "s", owner_id="ann"))  # of alerts
    assert not (await table.beat("a")).wanted
    online, offline = ("stream.online",), ("stream.offline",)
    for new in (
        NewTarget("https://x", "s", stream_id="door", rules=TargetRules(offline)),
        NewTarget("https://x", "s", owner_id="ann", rules=TargetRules(online, stream_prefix="ga")),
        NewTarget("https://x", "s", rules=TargetRules(("stream.watched",), stream_prefix="y")),
        NewTarget("https://x", "s", owner_id="bob", rules=EVERYTHING),
    ):
        await targets.add(new)
    assert (await table.beat("a")).wanted
    streams = [evolve(DOOR, stream_id=each, watched=True) for each in ("door", "gate", "yard")]
    await table.tell("a", streams)
    await table.tell("a", [evolve(each, online=False) for each in streams])
    assert stored(rows) == ["gate online", "yard watched", "door offline"]


async def test_a_user_has_a_bounded_number_of_events_and_old_ones_go(
    database: Database, rows: Accounts
) -> None:
    table = StreamEventTable(database)
    await AlertTargetTable(database).add(NewTarget("https://x", "s", rules=EVERYTHING))
    rows.execute(
        "insert into relay.stream_events (event_id, stream_id, owner_id, life, kind, epoch)"
        " select n, 'gate', 'ann', 0, 'stream.online', 7 from generate_series(1, 1200) n"
    )
    await table.tell("a", [DOOR])
    assert len(stored(rows)) == 1000
    assert stored(rows)[-1] == "door online"
    assert await table.prune(3600) == 999
    rows.execute("update relay.stream_events set event_id = 1")
    assert await table.prune(3600) == 0  # the newest: ids grow from it


async def test_a_stream_that_goes_to_another_owner_is_offline_for_the_former(
    database: Database, rows: Accounts
) -> None:
    table = StreamEventTable(database)
    await AlertTargetTable(database).add(NewTarget("https://x", "s", rules=EVERYTHING))
    await table.tell("a", [evolve(DOOR, watched=True)])
    rows.execute("update relay.streams set owner_id = 'bob' where stream_id = 'door'")
    await table.tell("a", [evolve(DOOR, owner_id="bob")])
    assert stored(rows) == [
        *("door online", "door watched", "door unwatched"),
        *("door offline", "door online"),
    ]
    owners = rows.execute("select owner_id from relay.stream_events order by event_id")
    assert [each for (each,) in owners] == ["ann"] * 4 + ["bob"]
    lives = rows.execute("select distinct life from relay.stream_events")
    assert len(lives) == 2


async def test_the_streams_of_a_dead_process_end_once_unless_another_has_them(
    database: Database, rows: Accounts
) -> None:
    table = StreamEventTable(database)
    await AlertTargetTable(database).add(NewTarget("https://x", "s", rules=EVERYTHING))
    gate, yard = (evolve(DOOR, stream_id=each) for each in ("gate", "yard"))
    await table.beat("a")
    await table.tell("a", [DOOR, gate, yard])
    await table.beat("b")
    await table.tell("b", [gate])
    others = (await table.beat("b")).others
    assert others.keys() == {"a"}
    assert (await table.beat("a")).others.keys() == {"b"}
    assert not await table.end_source("a", others["a"])  # it lives
    seen_at = (await table.beat("b")).others["a"]
    assert await table.end_source("a", seen_at)
    assert stored(rows)[3:] == ["door offline", "yard offline"]
    assert await table.end_source("a", None)
    assert len(stored(rows)) == 5
    assert (await table.beat("a")).is_new


# -- a relay


@define(eq=False)
class Receiver:
    """What a webhook was told, in order."""

    told: list[tuple[str, str]] = field(factory=list)
    """The kinds of events, each with its stream."""
    _ids: set[str] = field(factory=set)

    async def take(self, request: Request, stream: trio.abc.Stream) -> None:
        body = json.loads(request.body)
        if request.headers["webhook-id"] not in self._ids:
            self._ids.add(request.headers["webhook-id"])
            self.told.append((body["type"].removeprefix("stream."), body["data"]["streamId"]))
        await says(b"")(request, stream)

    def of(self, stream_id: str) -> list[str]:
        return [kind for kind, its in self.told if its == stream_id]


async def add(accounts: Accounts, server: WebServer, rules: TargetRules) -> None:
    async with open_database(accounts.url) as database:
        await AlertTargetTable(database).add(
            NewTarget(server.url, "whsec_AAAA", rules=evolve(rules, stream_prefix=""))
        )


async def test_a_webhook_is_told_of_a_stream_from_its_beginning_to_its_end(
    postgres_url: str,
) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    receiver = Receiver()
    async with open_web_server(receiver.take) as server:
        with start_relay(*LOOPBACK, *QUICK, database_url=postgres_url) as relay:
            async with login(relay, token) as early:
                await early.register("before-there-was-a-target")
                await add(accounts, server, EVERYTHING)
                await until(
                    lambda: bool(accounts.execute("select stream_id from relay.told_streams"))
                )
                async with login(relay, token) as phone:
                    await phone.register(stream_id)
                    await until(lambda: receiver.of(stream_id) == ["online"])
                    alert = {"type": "alert", "streamId": stream_id, "severity": "low"}
                    await phone.ask({**alert, "message": "m"})
                    async with login(relay, token) as viewer:
                        await viewer.subscribe(stream_id)
                        await until(lambda: receiver.of(stream_id)[1:] == ["alert", "watched"])
                    await until(lambda: receiver.of(stream_id)[3:] == ["unwatched"])
                await until(lambda: receiver.of(stream_id)[4:] == ["offline"])
            await until(lambda: receiver.told[5:] == [("offline", "before-there-was-a-target")])
            assert (await relay.get("/ready")).json()["services"]["stream-events"] == "running"


@pytest.mark.slow
async def test_a_relay_that_is_started_again_makes_no_false_events(postgres_url: str) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    receiver = Receiver()
    async with open_web_server(receiver.take) as server:
        await add(accounts, server, EVERYTHING)
        sources: set[str] = set()

        def is_told_by_another() -> bool:
            found = accounts.execute("select source from relay.told_streams")
            return {source for (source,) in found} - sources != set()

        for _ in range(2):
            with start_relay(*LOOPBACK, *QUICK, database_url=postgres_url) as relay:
                async with login(relay, token) as phone, login(relay, token) as viewer:
                    await phone.register(stream_id)
                    await until(is_told_by_another)
                    await viewer.subscribe(stream_id)
                    await trio.sleep(2)
                    await until(lambda: receiver.of(stream_id) == ["online", "watched"])
                    found = accounts.execute("select source from relay.told_streams")
                    sources.update(source for (source,) in found)
                    await kill(relay)
        assert receiver.told == [("online", stream_id), ("watched", stream_id)]
        assert len(sources) == 2


@pytest.mark.slow
async def test_nodes_count_once_and_one_that_dies_is_told_of_in_the_end(
    postgres_url: str,
) -> None:
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    receiver = Receiver()
    async with open_web_server(receiver.take) as server:
        await add(accounts, server, EVERYTHING)
        with start_nodes(postgres_url, 3, *LOOPBACK) as (a, b, c):
            async with login(a, token) as first, login(c, token) as viewer:
                await first.register(stream_id)
                await viewer.subscribe(stream_id)
                await until(lambda: receiver.of(stream_id) == ["online", "watched"])
                async with login(b, token) as second:  # takes over
                    await second.register(stream_id)
                    await trio.sleep(8)
                    assert receiver.of(stream_id) == ["online", "watched"]
                    await kill(b)
                    with trio.fail_after(DEAD_AFTER):
                        while len(receiver.told) < 4:  # noqa: ASYNC110
                            await trio.sleep(0.1)
                    assert receiver.of(stream_id)[2:] == ["unwatched", "offline"]
            await trio.sleep(10)
            assert len(receiver.told) == 4


async def kill(relay: RelayProcess) -> None:
    relay.signal(SIGKILL)
    await relay.ended()
