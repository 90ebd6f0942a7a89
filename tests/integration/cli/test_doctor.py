"""`relay doctor` looks at the real things: databases, ports, relays."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import trio
from joserfc.jwk import ECKey
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.doctor import database as doctor_database
from relay.doctor import machine
from relay.doctor.checks import Examined, Finding, Outcome, examine
from relay.doctor.database import DatabaseChecks
from relay.doctor.issuer import IssuerChecks
from relay.doctor.machine import MachineChecks
from relay.model.targets.alert_target import NewTarget
from relay.postgres.database import open_database
from relay.postgres.embedded.embedded import open_embedded
from relay.postgres.tables.alert_targets import AlertTargetTable
from relay.postgres.tables.alerts.alert_retention import AlertPruner
from relay.postgres.tables.audit import AuditTable
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.conftest import PostgresServer
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, run_relay, start_relay, until
from tests.integration.web_server import Answer, flood, open_web_server, says

PASSWORD = "5ecret-passw0rd"
KEY = ECKey.generate_key("P-256").as_dict(private=False)


async def look(settings: Settings, *names: str) -> dict[str, Finding]:
    """What the checks find, or those of these names."""
    found: dict[str, Finding] = {}

    def tell(examined: Examined) -> None:
        found[examined.name] = examined.finding

    checks = [
        *DatabaseChecks(settings).checks(),
        *IssuerChecks(settings).checks(),
        *MachineChecks(settings).checks(),
    ]
    chosen = [each for each in checks if not names or each.name in names]
    await examine(chosen, (), tell)
    return found


def outcomes(found: dict[str, Finding], *names: str) -> list[Outcome]:
    return [found[name].outcome for name in names]


OF_TARGETS = ("database", "targets")
OF_DATABASE = ("database", "tables", "better-auth", "logouts", "clock")


@pytest.fixture(autouse=True)
def _no_query_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is."""
    monkeypatch.setattr(doctor_database, "SLOW_QUERY", 60.0)


async def test_a_database_that_takes_long_to_answer_is_told(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_database, "SLOW_QUERY", 0.0)
    found = await look(Settings(database_url=postgres_url), "database")
    assert found["database"].outcome is Outcome.WARN
    assert "closer to the database" in found["database"].do


async def test_a_database_as_it_should_be_is_ok(postgres_url: str) -> None:
    found = await look(Settings(database_url=postgres_url))
    assert outcomes(found, *OF_DATABASE) == [Outcome.OK] * 5
    assert found["database"].said.startswith("PostgreSQL ")
    assert "triggers report logouts at once" in found["logouts"].said
    assert "disk" not in found  # which is the database's own business


async def test_an_empty_database_is_told_what_to_do_and_stays_empty(
    empty_postgres_url: str,
) -> None:
    found = await look(Settings(database_url=empty_postgres_url))
    assert outcomes(found, *OF_DATABASE) == [
        *(Outcome.OK, Outcome.FAIL, Outcome.FAIL, Outcome.SKIP, Outcome.OK)
    ]
    assert "migrations are missing" in found["tables"].said
    assert "relay db migrate" in found["tables"].do
    assert 'there is no table "user"' in found["better-auth"].said
    with psycopg.connect(empty_postgres_url) as connection:
        assert connection.execute("select to_regnamespace('relay')").fetchall() == [(None,)]


async def test_a_newer_relay_s_database_is_said_to_be_one(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("insert into relay.migrations (name) values ('9999_later')")
    found = await look(Settings(database_url=postgres_url), "database", "tables")
    assert found["tables"].outcome is Outcome.FAIL
    assert "made by a newer relay" in found["tables"].said


async def test_targets_of_alerts_that_fail_are_named(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        table = AlertTargetTable(database)
        ok = await table.add(NewTarget("https://x", "5ecret", stream_id="a"))
        settings = Settings(database_url=postgres_url)
        assert (await look(settings, *OF_TARGETS))["targets"].outcome is Outcome.OK
        picture = await table.add(
            NewTarget("https://x/t", "5ecret", "ntfy", stream_id="a", options={"picture": True})
        )
        assert "public_url" in (await look(settings, *OF_TARGETS))["targets"].said
        settings = Settings(database_url=postgres_url, public_url="https://relay.example.org")
        assert (await look(settings, *OF_TARGETS))["targets"].outcome is Outcome.OK
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "update relay.alert_targets set failures = 3, last_error = 'status 500',"
            " given_up_at = case when kind = 'ntfy' then now() end"
        )
    found = (await look(settings, *OF_TARGETS))["targets"]
    assert found.outcome is Outcome.WARN
    assert f"{picture} is given up (status 500); {ok} fails (status 500)" in found.said
    assert "relay target test" in found.do
    assert "5ecret" not in str(found)


@pytest.fixture
def stranger_url(postgres_url: str, postgres_server: PostgresServer) -> Iterator[str]:
    """The same database for a role that may do nothing there."""
    role = sql.Identifier(f"stranger_{time.monotonic_ns()}")
    name = role.as_string().strip('"')
    postgres_server.execute(
        sql.SQL("create role {} login password {}").format(role, sql.Literal(PASSWORD))
    )
    try:
        yield make_conninfo(postgres_url, user=name, password=PASSWORD)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop owned by {}").format(role))
        postgres_server.execute(sql.SQL("drop role {}").format(role))


async def test_a_role_without_rights_is_told_which_it_lacks(
    stranger_url: str, postgres_url: str
) -> None:
    role = sql.Identifier(str(conninfo_to_dict(stranger_url)["user"]))
    found = await look(Settings(database_url=stranger_url), *OF_DATABASE)
    assert outcomes(found, *OF_DATABASE) == [
        *(Outcome.OK, Outcome.FAIL, Outcome.FAIL, Outcome.SKIP, Outcome.OK)
    ]
    assert "permission denied" in found["tables"].said
    assert "permission denied" in found["better-auth"].said
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            sql.SQL(
                "grant usage on schema relay to {0};"
                " grant select on all tables in schema relay to {0};"
                ' grant select on "user", session to {0}'
            ).format(role)
        )
    found = await look(Settings(database_url=stranger_url), *OF_DATABASE)
    assert "may not use alert_byte_changes, alert_bytes, alert_order" in found["tables"].said
    assert found["better-auth"].outcome is Outcome.OK
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            sql.SQL(
                "grant usage on all sequences in schema relay to {0};"
                " grant insert on all tables in schema relay to {0}"
            ).format(role)
        )
    found = await look(Settings(database_url=stranger_url), *OF_DATABASE)
    assert found["tables"].said == (
        "this role may not use alert_byte_changes, alert_bytes, alert_order, alert_pictures,"
        " alert_targets, alerts, audit, claim_locks, deleted_owners, epochs, event_sources,"
        " link_readers, links, live_streams, mqtt_streams, nodes, operator_requests,"
        " raised_alerts, stream_events, streams, target_cooldowns, told_streams, viewers_woken"
    )
    assert "DELETE" in found["tables"].do
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            sql.SQL(
                "grant usage, update on all sequences in schema relay to {0};"
                " grant select, insert, update, delete on all tables in schema relay to {0}"
            ).format(role)
        )
    found = await look(Settings(database_url=stranger_url), *OF_DATABASE)
    assert found["tables"].outcome is Outcome.OK


async def test_the_rights_that_it_wants_are_enough_for_a_relay(
    stranger_url: str, postgres_url: str
) -> None:
    role = sql.Identifier(str(conninfo_to_dict(stranger_url)["user"]))
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            sql.SQL(
                "grant usage on schema relay to {0}; grant update on relay.alert_order to {0};"
                " grant delete on relay.raised_alerts, relay.alert_byte_changes to {0};"
                " grant insert, update, delete on relay.alert_bytes to {0};"
                " grant insert, update, delete on relay.alert_pictures to {0};"
                " grant select on all tables in schema relay to {0};"
                " grant insert, update on relay.streams to {0};"
                " grant delete on relay.deleted_owners to {0};"
                " grant insert, update, delete on relay.operator_requests to {0};"
                " grant insert, delete on relay.alerts to {0};"
                " grant insert, update, delete on relay.audit to {0};"
                " grant update on relay.alert_targets, relay.claim_locks to {0};"
                " grant insert, delete on relay.alert_targets to {0};"
                " grant insert on relay.push_key to {0};"
                " grant update on relay.viewers_woken to {0};"
                " grant insert, update, delete on relay.target_cooldowns to {0};"
                " grant insert, update, delete on relay.mqtt_streams to {0};"
                " grant insert, delete on relay.stream_events to {0};"
                " grant insert, update, delete on relay.told_streams, relay.event_sources to {0};"
                " grant insert, update, delete on relay.nodes, relay.live_streams to {0};"
                " grant insert, update, delete on relay.links, relay.link_readers to {0};"
                " grant usage, update on sequence relay.epochs to {0};"
                ' grant select on "user", session to {0}'
            ).format(role)
        )
    found = await look(Settings(database_url=stranger_url), *OF_DATABASE)
    assert outcomes(found, *OF_DATABASE) == [Outcome.OK] * 5
    accounts, stream_id = Accounts(postgres_url), new_stream_id()
    token = accounts.session()
    with start_relay(database_url=stranger_url) as relay:
        async with login(relay, token) as phone:
            await phone.register(stream_id)
            alert = {"type": "alert", "streamId": stream_id, "severity": "low", "message": "m"}
            assert (await phone.ask(alert))["code"] == "ALERT_ACCEPTED"
            assert (await phone.receive_type("alert"))["message"] == "m"
            await phone.send_frame(b"\xff\xd8\xff\xe0 a picture")
            body = b'{"streamId": "%s", "what": "mjpeg"}' % stream_id.encode()
            header = {"Authorization": f"Bearer {token}"}
            made = await relay.get("/links", "POST", headers=header, body=body)
            reader = await trio.open_tcp_stream("127.0.0.1", relay.port)
            async with reader:
                await reader.send_all(f"GET {made.json()['url']} HTTP/1.0\r\n\r\n".encode())
                assert b"200 OK" in await reader.receive_some()
        await until(lambda: bool(accounts.execute("select audit_id from relay.audit")))
        assert (await relay.get("/ready")).status == 200
    async with open_database(stranger_url) as database:
        retention = AlertPruner(database)
        assert await retention.remove_old(timedelta(), most=500) == 1
        assert await AuditTable(database).prune(timedelta(), most=100) > 0
        table = AlertTargetTable(database)
        assert await table.claim(uuid4(), lasts=timedelta(1), room={"webhook": 1}) == []


async def test_where_the_database_is_away_nothing_is_said_twice() -> None:
    url = f"postgresql://relay:{PASSWORD}@127.0.0.1:1/relay"
    found = await look(Settings(database_url=url), *OF_DATABASE)
    assert outcomes(found, *OF_DATABASE) == [Outcome.FAIL, *[Outcome.SKIP] * 4]
    assert "refused" in found["database"].said
    assert PASSWORD not in str(found)


async def test_a_way_to_listen_that_leads_nowhere_is_found(postgres_url: str) -> None:
    nowhere = f"postgresql://relay:{PASSWORD}@127.0.0.1:1/relay"
    settings = Settings(database_url=postgres_url, listen_url=nowhere)
    found = await look(settings, "database", "logouts")
    assert found["logouts"].outcome is Outcome.FAIL
    assert "listen_url" in found["logouts"].do
    assert PASSWORD not in str(found)


async def test_without_triggers_it_says_how_often_sessions_are_read(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("drop trigger relay_watch_delete on session")
    found = await look(Settings(database_url=postgres_url, session_poll=0.25))
    assert found["logouts"].outcome is Outcome.OK
    assert "checked every 0.25 s" in found["logouts"].said


@pytest.mark.parametrize(
    ("ahead", "outcome"),
    [(1.0, Outcome.OK), (-30.0, Outcome.WARN), (30.0, Outcome.WARN), (3600.0, Outcome.FAIL)],
)
async def test_clocks_that_are_apart_are_found(
    ahead: float, outcome: Outcome, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    found = await look(Settings(database_url=postgres_url), "database", "clock")
    assert found["clock"].outcome is outcome
    assert ("behind" if ahead > 0 else "ahead of") in found["clock"].said


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A place for a Postgres that runs as another user when the tests run as root."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "data"


async def test_relay_s_own_database_is_looked_at_where_it_runs_and_not_started(
    data_dir: Path,
) -> None:
    settings = Settings(data_dir=data_dir)

    def files() -> list[Path]:
        return sorted(data_dir.parent.rglob("*"))

    found = await look(settings, *OF_DATABASE, "disk")
    assert outcomes(found, *OF_DATABASE) == [Outcome.OK, *[Outcome.SKIP] * 4]
    assert "starts with relay" in found["database"].said
    assert files() == []
    async with open_embedded(data_dir):
        found = await look(settings, *OF_DATABASE, "disk")
        assert outcomes(found, *OF_DATABASE) == [Outcome.OK] * 5
    before = files()
    found = await look(settings, *OF_DATABASE, "disk")
    assert outcomes(found, *OF_DATABASE) == [Outcome.OK, *[Outcome.SKIP] * 4]
    assert files() == before
    # A relay that was killed leaves word of a PostgreSQL that is gone.
    (data_dir / "url").write_text(f"postgresql://relay:{PASSWORD}@127.0.0.1:1/relay")
    found = await look(settings, *OF_DATABASE)
    assert outcomes(found, *OF_DATABASE) == [Outcome.OK, *[Outcome.SKIP] * 4]
    (data_dir / "postgres" / "PG_VERSION").write_text("9\n")
    found = await look(settings, "database")
    assert "was made by PostgreSQL 9" in found["database"].said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says({"keys": [KEY, KEY, {"kty": "oct", "k": "AAAA"}]}), "publishes 2 keys"),
        (says({"keys": [{}]}), "has no key for JWTs"),
        (says({"keys": 7}), "has no key for JWTs"),
        (says([]), "has no key for JWTs"),
        (says(b"<html>"), "has no key for JWTs"),
        (says({}, "404 Not Found"), "cannot fetch the keys of the issuer from http://127.0.0.1"),
        (flood, "cannot fetch the keys of the issuer from http://127.0.0.1"),
    ],
)
async def test_an_issuer_s_keys_are_fetched(answer: Answer, said: str) -> None:
    async with open_web_server(answer) as server:
        found = await look(Settings(jwt_jwks_url=server.url), "jwks")
    assert said in found["jwks"].said
    assert (found["jwks"].outcome is Outcome.OK) == ("publishes" in said)


async def test_a_port_is_free_or_has_a_relay_or_something_else(
    relay: RelayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await look(Settings(bind=f"127.0.0.1:{relay.port}"), "port")
    assert found["port"] == Finding(Outcome.OK, f"a relay answers at 127.0.0.1:{relay.port}")
    for words in (b"", b"SSH-2.0-other\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}", None):
        if words is None:
            monkeypatch.setattr(machine, "HEALTH_TIMEOUT", 0.3)
        async with other_server(words) as port:
            found = await look(Settings(bind=f"127.0.0.1:{port}"), "port")
        assert found["port"].outcome is Outcome.FAIL
        assert "is in use by another program" in found["port"].said
    found = await look(Settings(bind=f"127.0.0.1:{port}"), "port")
    assert found["port"].said == f"127.0.0.1:{port} is free"


@asynccontextmanager
async def other_server(says: bytes | None) -> AsyncIterator[int]:
    """Something that is no relay; None: it says nothing and does not hang up."""

    async def serve(stream: trio.SocketStream) -> None:
        if says is None:
            await trio.sleep_forever()
        await stream.send_all(says or b"")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_relay_is_known_whatever_it_asks_of_who_comes(
    database_url: str, tmp_path: Path
) -> None:
    tls = ("--dev-tls", "--data-dir", str(tmp_path))
    proxy = ("--proxy-protocol", "--trusted-proxies", "127.0.0.1")
    lists = ("--allow-networks", "192.0.2.0/24")
    with start_relay(*tls, *proxy, *lists, database_url=database_url) as relay:
        bind = f"127.0.0.1:{relay.port}"
        mine = Settings(bind=bind, proxy_protocol=True, trusted_proxies=("127.0.0.1",))
        found = await look(mine, "port")
        assert found["port"].said == f"a relay answers at {bind}"


async def test_an_address_of_another_machine_is_no_place_to_listen() -> None:
    found = await look(Settings(bind="192.0.2.1:3000"), "port")
    assert found["port"].said == "this machine does not have the address 192.0.2.1"
    assert found["port"].outcome is Outcome.FAIL


def test_the_command_ends_with_1_where_something_fails(postgres_url: str) -> None:
    done = run_relay("doctor", "--json", "--bind", "127.0.0.1:0", database_url=postgres_url)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["ok"]
    outcomes = {each["name"]: each["outcome"] for each in told["checks"]}
    if "run relay closer to the database" in done.stdout:  # as a busy machine makes it seem
        outcomes["database"] = "ok"
    expected = ["settings", *OF_DATABASE, "targets", "brokers", "files", "port", "tls", "pictures"]
    assert outcomes == dict.fromkeys(expected, "ok")
    secret = f"postgresql://relay:{PASSWORD}@127.0.0.1:1/relay"
    done = run_relay("doctor", "--bind", "3000", database_url=secret)
    assert (done.returncode, done.stderr) == (1, "")
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split()[:2] for line in lines] == [
        ["fail", "settings"],
        ["fail", "database"],
        *(["skip", name] for name in (*OF_DATABASE[1:], "targets", "brokers")),
        ["ok", "files"],
        ["skip", "port"],
        ["skip", "tls"],
        ["ok", "pictures"],
    ]
    assert PASSWORD not in done.stdout


async def test_a_folder_that_relay_may_not_write_to_is_a_failure(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    for settings in (
        Settings(data_dir=Path("/no/such/folder")),
        Settings(database_url=postgres_url, dev_tls=True, data_dir=Path("/no/such/folder")),
    ):
        found = await look(settings, "disk")
        assert found["disk"].outcome is Outcome.FAIL
        assert "data_dir" in found["disk"].do


async def test_a_relay_whose_role_may_not_write_answers_that_the_store_is_unavailable(
    stranger_url: str, postgres_url: str
) -> None:
    role = sql.Identifier(str(conninfo_to_dict(stranger_url)["user"]))
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            sql.SQL(
                "grant usage on schema relay to {0};"
                " grant select on all tables in schema relay to {0};"
                ' grant select on "user", session to {0}'
            ).format(role)
        )
    accounts, known, new = Accounts(postgres_url), new_stream_id(), new_stream_id()
    token = accounts.session("ann")
    accounts.execute("insert into relay.streams (stream_id, owner_id) values (%s, 'ann')", known)
    with start_relay(database_url=stranger_url) as relay:
        async with login(relay, token) as phone:
            refused = await phone.ask({"type": "register", "streamId": new})
            assert refused["code"] == "STORE_UNAVAILABLE"
            await phone.register(known)
            alert = {"type": "alert", "streamId": known, "severity": "low", "message": "m"}
            assert (await phone.ask(alert))["code"] == "STORE_UNAVAILABLE"
            since = {"type": "alerts-since", "streamId": known}
            assert (await phone.ask(since))["code"] == "ALERTS_REPLAYED"
        assert "permission denied" in relay.log
        assert "Traceback" not in relay.log
