"""Databases whose encoding lacks characters: one client's text never stops the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from importlib import resources
from uuid import uuid4

import psycopg
import pytest
import trio
from psycopg import sql

from relay.audit.log import AuditLog
from relay.doctor.database import DatabaseChecks
from relay.errors import StoreRejects
from relay.model.alerts.alert import NewAlert
from relay.model.audit_event import AuditEvent
from relay.postgres.database import open_database
from relay.postgres.migrate import migrate
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.audit import AuditTable
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.triggers import SessionTriggers
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.conftest import PostgresServer
from tests.integration.peers import login, open_peer
from tests.integration.relay_process import run_relay, start_relay, until

EMOJI = "\N{GRINNING FACE}"
WORD = "\N{CYRILLIC SMALL LETTER ZHE}"
LACKING = ("LATIN1", "WIN1252")


@pytest.fixture(params=[*LACKING, "SQL_ASCII"])
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def odd_url(postgres_server: PostgresServer, encoding: str) -> str:
    return await make_database(postgres_server, encoding)


@pytest.fixture(params=LACKING)
async def lacking_url(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> str:
    return await make_database(postgres_server, str(request.param))


@pytest.fixture(autouse=True)
def dropped_databases(postgres_server: PostgresServer) -> Iterator[None]:
    yield
    with psycopg.connect(postgres_server.url_of("postgres"), autocommit=True) as connection:
        rows = connection.execute(
            "select datname from pg_database where datname like 'odd\\_%'"
        ).fetchall()
        for (name,) in rows:
            drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(name))
            connection.execute(drop)


async def make_database(server: PostgresServer, encoding: str) -> str:
    name = f"odd_{uuid4().hex}"
    server.execute(
        sql.SQL("create database {} encoding {} template template0 locale 'C'").format(
            sql.Identifier(name), sql.Literal(encoding)
        )
    )
    url = server.url_of(name)
    tables = resources.files("relay.postgres.embedded") / "better_auth.sql"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(tables.read_bytes())
    async with open_database(url) as database:
        await migrate(database)
    return url


async def test_a_strange_token_fails_alone(odd_url: str) -> None:
    ann = Accounts(odd_url).session("ann")
    with start_relay(database_url=odd_url) as relay:
        codes: list[str] = []

        async def guess(token: str) -> None:
            async with open_peer(relay) as peer:
                codes.append((await peer.authenticate(token))["code"])

        async with trio.open_nursery() as nursery:
            for token in (EMOJI, ann, f"{ann}{WORD}", ann, "\x81", f"relay_service_{EMOJI}"):
                nursery.start_soon(guess, token)
        assert sorted(codes) == ["AUTHENTICATED"] * 2 + ["AUTH_FAILED"] * 4
        assert "Traceback" not in relay.log
        assert ann not in relay.log


async def test_an_alert_that_cannot_be_stored_is_answered_and_others_are_stored(
    lacking_url: str,
) -> None:
    ann, bob = Accounts(lacking_url).sessions(["ann", "bob"])
    with start_relay(database_url=lacking_url) as relay:
        async with login(relay, ann) as phone, login(relay, bob) as other:
            await phone.register("porch")
            await other.register("yard")
            alert = {"type": "alert", "streamId": "porch", "severity": "low"}
            bad = await phone.ask({**alert, "message": f"a {EMOJI}"})
            assert (bad["type"], bad["code"]) == ("error", "INVALID_MESSAGE")
            good = {"type": "alert", "streamId": "yard", "severity": "low", "message": "caf\xe9"}
            assert (await other.ask(good))["code"] == "ALERT_ACCEPTED"
            in_metadata = {**alert, "message": "m", "metadata": {"what": EMOJI}}
            assert (await phone.ask(in_metadata))["code"] == "ALERT_ACCEPTED"
        headers = {"Authorization": f"Bearer {ann}", "Content-Type": "application/json"}
        body = {"streamId": "porch", "severity": "low", "message": EMOJI}
        reply = await relay.get("/alerts", "POST", headers=headers, body=json.dumps(body).encode())
        assert (reply.status, reply.json()["error"]["code"]) == (400, "INVALID_MESSAGE")
        assert "Traceback" not in relay.log


async def test_alerts_of_one_batch_are_stored_but_for_the_one_that_cannot_be(
    lacking_url: str,
) -> None:
    async with open_database(lacking_url) as database:
        with pytest.raises(StoreRejects) as caught:
            await database.transact(lambda c: c.execute("select %s::text", [EMOJI]).fetchone())
        assert "UTF8" in str(caught.value)
        assert await AlertTable(database).store([]) == []
        with psycopg.connect(lacking_url, autocommit=True) as connection:
            connection.execute("insert into relay.streams values ('porch', 'ann')")
        with pytest.raises(StoreRejects):
            await AlertTable(database).store(
                [NewAlert("porch", "user:ann", "low", text, 0) for text in ("a", EMOJI)]
            )
        (stored,) = await AlertTable(database).store([NewAlert("porch", "user:ann", "low", "a", 0)])
        assert stored is not None


async def test_rows_that_cannot_be_read_harm_no_other(postgres_server: PostgresServer) -> None:
    """SQL_ASCII takes any bytes; those of another encoding cannot be sent to relay."""
    url = await make_database(postgres_server, "SQL_ASCII")
    async with open_database(url) as database:
        await SessionTriggers(database, (await find_better_auth(database)).tables).install()
    accounts = Accounts(url)
    ann, bob, carl, odd = accounts.sessions(["ann", "bob", "carl", "odd"])
    accounts.execute("update session set id = E'caf\\351' where \"userId\" = 'odd'")
    with start_relay(database_url=url) as relay:
        async with open_peer(relay) as peer:
            assert (await peer.authenticate(odd))["code"] == "AUTH_FAILED"
        async with (
            login(relay, ann) as first,
            login(relay, bob) as second,
            login(relay, carl) as third,
        ):
            accounts.execute("insert into relay.grants values ('ann', E'caf\\351')")
            _, close = await first.hear_end()
            assert close == (4501, "session revoked")
            accounts.execute("delete from session where \"userId\" = 'odd'")
            accounts.execute("delete from session where token = %s", bob)
            _, close = await second.hear_end()
            assert close == (4501, "session revoked")
            assert (await third.ask({"type": "streams"}))["code"] == "STREAMS"
        assert "Traceback" not in relay.log


async def test_what_the_audit_cannot_hold_is_written_in_ascii(lacking_url: str) -> None:
    events = [
        AuditEvent(what="auth", outcome="failed", user_id=user) for user in ("ann", WORD, "bob")
    ]
    async with open_database(lacking_url) as database, trio.open_nursery() as nursery:
        table = AuditTable(database)
        log = AuditLog(table)
        await nursery.start(log.run)
        for event in events:
            log.record(event.what, outcome=event.outcome, user_id=event.user_id)
        await until(lambda: not log.waiting)
        nursery.cancel_scope.cancel()
    async with open_database(lacking_url) as database:
        rows = await AuditTable(database).read()
    assert [row.user_id for row in rows] == ["ann", "\\u0436", "bob"]
    assert log.dropped == 0


@pytest.mark.parametrize(
    "encoding",
    [
        "LATIN1",
        pytest.param("WIN1252", marks=pytest.mark.slow),
        pytest.param("SQL_ASCII", marks=pytest.mark.slow),
    ],
)
async def test_commands_say_in_a_line_what_the_database_cannot_hold(odd_url: str) -> None:
    Accounts(odd_url).session("ann")
    for command in (
        ("grant", EMOJI, "porch"),
        ("revoke", WORD, "porch"),
        ("grants", "--user", EMOJI),
        ("token", "service", "--name", f"camera {EMOJI}", "--consume", "*"),
        ("token", "revoke", EMOJI),
        ("token", "session", "--user", f"{WORD}@example.org"),
        ("audit", "--user", EMOJI),
        ("webhook", "remove", EMOJI),
    ):
        done = await trio.to_thread.run_sync(partial(run_relay, *command, database_url=odd_url))
        assert "Traceback" not in done.stderr, command
        assert done.stderr.count("\n") <= 1 or done.returncode == 0, (command, done.stderr)


async def test_doctor_names_the_encoding(odd_url: str, encoding: str) -> None:
    checks = {each.name: each for each in DatabaseChecks(Settings(database_url=odd_url)).checks()}
    found = await checks["database"].look()
    assert found.outcome == "warn"
    assert encoding in found.said
    assert "UTF8" in found.do
