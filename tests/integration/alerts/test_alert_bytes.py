"""The bytes of stored alerts are counted for each sender, and bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest
from attrs import evolve

from relay.alerts.retention import Retention
from relay.metrics import Metrics
from relay.model.alerts.alert import NewAlert, NoRoom, StoredAlert
from relay.model.trace_context import TraceContext
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alerts.alert_bytes import AlertBytes, ByteLimits, fold
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import start_relay

KIB = 1024
ANN = NewAlert("porch", "user:ann", "low", "m" * 800, 1)
BOB = NewAlert("yard", "user:bob", "low", "m" * 800, 1)
SERVICE = NewAlert("porch", "service:sentry", "low", "m" * 800, 1)
LIMITS = ByteLimits(in_all=100_000, per_user=10_000)
"""An alert of 800 characters counts 1000 bytes."""


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ann")
        await StreamTable(database).claim("yard", "bob")
        yield database


def table_of(database: Database) -> AlertTable:
    return AlertTable(database, AlertBytes(LIMITS))


async def fill(database: Database, alert: NewAlert, times: int) -> int:
    """Store an alert again and again; returns how often there was room."""
    outcome = await table_of(database).store([alert] * times)
    return sum(isinstance(each, StoredAlert) for each in outcome)


def counted(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                "select sender, sum(bytes)::bigint from (select * from relay.alert_bytes"
                " union all select * from relay.alert_byte_changes) known group by sender"
                " having sum(bytes) <> 0"
            ).fetchall()
        )


async def test_a_user_is_refused_what_is_too_much_and_another_is_not(database: Database) -> None:
    outcome = await table_of(database).store([ANN, BOB] * 15)
    assert [each for each in outcome[::2] if each is NoRoom.FOR_SENDER] == [NoRoom.FOR_SENDER] * 5
    assert [each for each in outcome[1::2] if each is NoRoom.FOR_SENDER] == [NoRoom.FOR_SENDER] * 5
    assert await fill(database, ANN, 1) == 0
    await fold(database)
    assert await fill(database, ANN, 1) == 0
    assert len(await AlertTable(database).after(0)) == 20


async def test_what_counts_is_what_is_stored_and_not_what_was_sent(database: Database) -> None:
    """An empty list is one byte of MessagePack, and three of JSON."""
    lists = evolve(ANN, message="", metadata={"a": [[]] * 3000})
    assert await fill(database, lists, 2) == 1


async def test_the_trace_that_a_sender_gives_counts_too(
    database: Database, postgres_url: str
) -> None:
    trace = TraceContext("a" * 32, "b" * 16, sampled=True, tracestate=f"k={'v' * 142}")
    assert len(trace.text) == 200
    assert await fill(database, evolve(ANN, trace=trace), 15) == 8
    assert counted(postgres_url) == {"user:ann": 8 * 1200}


async def test_an_alert_that_is_sent_again_needs_no_room(database: Database) -> None:
    keyed = evolve(ANN, alert_key="k")
    [first] = await table_of(database).store([keyed])
    await fill(database, ANN, 20)
    [again, other] = await table_of(database).store([keyed, evolve(ANN, alert_key="other")])
    assert again == first
    assert other is NoRoom.FOR_SENDER


async def test_services_share_half_of_all_and_all_together_have_a_limit(
    database: Database, postgres_url: str
) -> None:
    assert await fill(database, SERVICE, 60) == 50
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "insert into relay.alerts (alert_id, stream_id, sender, severity, message, timestamp)"
            " select n, 'yard', 'sql:' || n, 'low', repeat('m', 800), 1"
            " from generate_series(1, 48) n"
        )
    outcome = await table_of(database).store([ANN] * 4)
    assert outcome[2:] == [NoRoom.AT_ALL] * 2
    assert NoRoom.AT_ALL not in outcome[:2]


async def test_whatever_changes_the_table_is_counted(database: Database, postgres_url: str) -> None:
    await fill(database, ANN, 5)
    await fold(database)
    await fill(database, BOB, 3)
    assert counted(postgres_url) == {"user:ann": 5000, "user:bob": 3000}
    with psycopg.connect(postgres_url) as connection:
        connection.execute("delete from relay.alerts where sender = 'user:bob'")
        connection.execute("update relay.alerts set message = 'short'")
    assert counted(postgres_url) == {"user:ann": 5 * 205}
    await fold(database)
    assert counted(postgres_url) == {"user:ann": 5 * 205}
    with psycopg.connect(postgres_url) as connection:
        connection.execute("truncate relay.alerts")
    await fold(database)
    assert counted(postgres_url) == {}


async def test_alerts_of_before_they_were_counted_do_not_count(
    database: Database, postgres_url: str
) -> None:
    await fill(database, ANN, 5)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update relay.alerts set bytes = null")
        connection.execute("delete from relay.alerts")
    assert counted(postgres_url) == {}


def grow_older(url: str, *senders: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "update relay.alerts set accepted_at = accepted_at - interval '2 hours'"
            " where sender = any(%s)",
            [list(senders)],
        )


async def look_once(database: Database) -> None:
    pruner = AlertPruner(database, LIMITS)
    await Retention(pruner, Metrics(), timedelta(days=1), 1000).remove_all()


async def test_the_oldest_make_room_when_they_are_an_hour_old(
    database: Database, postgres_url: str
) -> None:
    assert await fill(database, ANN, 12) == 10
    await fill(database, BOB, 8)
    await look_once(database)
    assert await fill(database, ANN, 1) == 0
    kept = [
        each.alert_id for each in await AlertTable(database).after(0) if each.sender == ANN.sender
    ]
    grow_older(postgres_url, ANN.sender, BOB.sender)
    await look_once(database)
    left = await AlertTable(database).after(0)
    assert [each.alert_id for each in left if each.sender == ANN.sender] == kept[-7:]
    assert len([each for each in left if each.sender == BOB.sender]) == 8
    assert await fill(database, ANN, 10) == 3


async def test_when_all_is_full_the_heaviest_senders_make_room(
    database: Database, postgres_url: str
) -> None:
    senders = [f"user:{number}" for number in range(10)]
    for sender in senders:
        await fill(database, evolve(ANN, sender=sender), 4)
    await fill(database, SERVICE, 50)
    await fill(database, BOB, 2)
    grow_older(postgres_url, SERVICE.sender, BOB.sender, *senders)
    await look_once(database)
    assert counted(postgres_url)[BOB.sender] == 2000
    assert all(counted(postgres_url)[sender] == 4000 for sender in senders)
    assert sum(counted(postgres_url).values()) <= 75_000


async def test_a_user_who_stores_too_much_is_told_so_and_others_go_on(postgres_url: str) -> None:
    accounts, stream_id, other_id = Accounts(postgres_url), new_stream_id(), new_stream_id()
    flags = ("--alert-bytes-per-user", str(1 << 20))
    ann = accounts.session("ann")
    with start_relay(*flags, database_url=postgres_url) as relay:
        async with (
            login(relay, ann) as phone,
            login(relay, accounts.session("bob")) as other,
        ):
            await phone.register(stream_id)
            await other.register(other_id)
            heavy = {
                "type": "alert",
                "streamId": stream_id,
                "severity": "low",
                "message": "m",
                "metadata": {"text": "x" * 60_000},
            }
            codes = []
            for _ in range(20):
                reply = await phone.ask(heavy)
                codes.append(reply["code"])
            assert codes == ["ALERT_ACCEPTED"] * 17 + ["RATE_LIMITED"] * 3
            assert reply["retryAfter"] == 60_000
            assert "too many bytes of alerts" in reply["message"]
            light = {**heavy, "streamId": other_id}
            assert (await other.ask(light))["code"] == "ALERT_ACCEPTED"
            answer = await relay.get(
                "/alerts",
                "POST",
                headers={"Authorization": f"Bearer {ann}"},
                body=json.dumps(heavy).encode(),
            )
            assert answer.status == 429
            assert answer.json()["error"]["code"] == "RATE_LIMITED"
        assert (await relay.stats())["limits_hit"]["alert_bytes"] == 4
