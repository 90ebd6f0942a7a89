"""The audit of a real relay: what its peers do becomes rows, which `relay audit` shows."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from relay.audit.log import AuditLog
from relay.postgres.database import open_database
from relay.postgres.tables.audit import AuditTable
from relay.protocol.reports import StatsReport
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.raw import open_raw
from tests.integration.relay_process import RelayProcess, run_relay, start_relay, until

Row = tuple[Any, ...]


def rows_of(accounts: Accounts, user_id: str) -> list[Row]:
    return accounts.execute(
        "select what, outcome, reason, stream_id, session_id from relay.audit where user_id = %s"
        " order by audit_id",
        user_id,
    )


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--log-format", "json", database_url=database_url) as relay:
        yield relay


def show(accounts: Accounts, *arguments: str) -> str:
    done = run_relay("audit", *arguments, database_url=accounts.url)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_what_peers_do_becomes_rows(relay: RelayProcess, accounts: Accounts) -> None:
    ann, bob = accounts.session("ann-1"), accounts.session("bob-1")
    stream_id = new_stream_id()
    async with login(relay, ann) as first, login(relay, ann) as second, login(relay, bob) as other:
        await first.register(stream_id)
        await second.register(stream_id)
        assert (await first.hear_end())[1] == (4502, "superseded by a newer connection")
        refused = await other.ask({"type": "register", "streamId": stream_id})
        assert refused["code"] == "UNAUTHORIZED"
    await until(lambda: len(rows_of(accounts, "ann-1")) == 5)
    session = f"session-{ann[:8]}"
    (first_row, second_row, registered, takeover, closed) = rows_of(accounts, "ann-1")
    assert first_row == second_row == ("auth", "succeeded", "", None, session)
    assert registered == ("register", "succeeded", "", stream_id, session)
    assert takeover[:2] == ("takeover", "succeeded")
    assert takeover[2].startswith("from connection ")
    assert closed == ("close", "forced", "superseded", None, session)
    assert rows_of(accounts, "bob-1")[1] == (
        *("register", "refused", "This stream id is taken", stream_id),
        f"session-{bob[:8]}",
    )


async def test_a_row_and_its_line_of_the_log_say_the_same(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with login(relay, accounts.session("ann-2")):
        pass
    await until(lambda: bool(rows_of(accounts, "ann-2")))
    (shown,) = [
        json.loads(line) for line in show(accounts, "--user", "ann-2", "--json").splitlines()
    ]
    (line,) = [json.loads(line) for line in relay.log.splitlines() if '"ann-2"' in line]
    assert shown["address"] == "127.0.0.1"
    for name in ("outcome", "address", "user_id", "session_id", "connection"):
        assert shown[name] == line[name]
    assert shown["what"] == line["event"] == "auth"
    assert {name for name, value in shown.items() if value in (None, "")} == {
        *("node", "reason", "service", "stream_id"),
    }


async def test_it_is_shown_as_a_table_in_which_nothing_is_markup(accounts: Accounts) -> None:
    accounts.execute(
        "insert into relay.audit (event_id, at, what, outcome, reason, address, user_id, stream_id)"
        " values (gen_random_uuid(), now(), 'register', 'refused', 'because [red]of [/]'"
        " || chr(27), '192.0.2.1', 'eve-3', 's3')"
    )
    head, row = show(accounts, "--user", "eve-3").splitlines()
    assert head.split() == [
        *("time", "what", "outcome", "who", "stream", "address", "connection", "reason"),
    ]
    assert row.split()[2:] == [
        *("register", "refused", "eve-3", "s3", "192.0.2.1", "because", "[red]of", "[/]\ufffd"),
    ]


async def test_a_command_shows_the_newest_and_tells_when_there_is_nothing(
    accounts: Accounts,
) -> None:
    accounts.execute(
        "insert into relay.audit (event_id, at, what, outcome, reason, address, user_id)"
        " select gen_random_uuid(), now() - n * interval '1 hour', 'auth', 'failed', n::text, '',"
        " 'eve-4' from generate_series(9, 0, -1) as n"
    )

    def reasons(*arguments: str) -> list[str]:
        lines = show(accounts, "--user", "eve-4", "--json", *arguments).splitlines()
        return [json.loads(line)["reason"] for line in lines]

    assert reasons("--limit", "2") == ["1", "0"]
    assert reasons("--since", "150m") == ["2", "1", "0"]
    assert reasons("--what", "close") == []
    done = run_relay("audit", "--user", "nobody-4", database_url=accounts.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no audit events found" in done.stderr


def test_a_database_without_the_table_gets_told_what_to_do(empty_postgres_url: str) -> None:
    done = run_relay("audit", database_url=empty_postgres_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "`relay db migrate`" in done.stderr


@pytest.mark.parametrize("arguments", [("--limit", "0"), ("--since", "yesterday"), ("--x",)])
def test_misuse_is_one_line(arguments: tuple[str, ...], accounts: Accounts) -> None:
    done = run_relay("audit", *arguments, database_url=accounts.url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


async def test_what_still_waits_is_written_before_the_end(
    database_url: str, accounts: Accounts
) -> None:
    with start_relay("--log-format", "json", database_url=database_url) as relay:
        async with AsyncExitStack() as stack:
            for token in accounts.sessions(["ann-5"] * 20):
                await stack.enter_async_context(login(relay, token))
            relay.signal(signal.SIGTERM)
            assert await relay.ended() == 0
    rows = rows_of(accounts, "ann-5")
    assert len(rows) == 40
    assert sum(row[:3] == ("close", "forced", "server_restarting") for row in rows) == 20


async def test_without_audit_there_is_the_log_only(database_url: str, accounts: Accounts) -> None:
    with start_relay("--no-audit", "--log-format", "json", database_url=database_url) as relay:
        async with login(relay, accounts.session("ann-6")):
            await relay.until_logged('"ann-6"')
        assert "audit" not in (await relay.get("/ready")).json()["services"]
    assert rows_of(accounts, "ann-6") == []


async def test_rows_of_a_time_without_postgres_come_later_and_in_order(
    database_url: str, accounts: Accounts, away: Callable[[], Any]
) -> None:
    with start_relay("--log-format", "json", database_url=database_url) as relay:
        async with login(relay, accounts.session("ann-7")) as phone:
            await until(lambda: len(rows_of(accounts, "ann-7")) == 1)
            async with away():
                for _ in range(3):
                    async with open_peer(relay) as stranger:
                        await stranger.send({"type": "auth", "token": "of-somebody"})
                        assert (await stranger.hear_end())[1] == (4013, "try again later")
                refused = await phone.ask({"type": "register", "streamId": new_stream_id()})
                assert refused["code"] == "STORE_UNAVAILABLE"
            await until(lambda: len(rows_of(accounts, "ann-7")) == 2)
        assert rows_of(accounts, "ann-7")[1][:2] == ("register", "unavailable")
        earlier = accounts.execute(
            "select what, outcome from relay.audit where audit_id < (select max(audit_id)"
            " from relay.audit where user_id = 'ann-7' and what = 'register')"
            " order by audit_id desc limit 6"
        )
        assert earlier == [("close", "forced"), ("auth", "unavailable")] * 3


async def test_a_flood_becomes_rows_in_order(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        log = AuditLog(AuditTable(database))
        async with trio.open_nursery() as nursery:
            await nursery.start(log.run)
            for number in range(5000):
                log.record("auth", outcome="failed", user_id=str(number), connection=number)
            await until(lambda: not log.waiting)
            nursery.cancel_scope.cancel()
        rows = await AuditTable(database).read(limit=10_000)
    assert [row.connection for row in rows] == list(range(5000))
    assert (log.written, log.dropped) == (5000, 0)


async def test_http_is_recorded_like_everything_else(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann-8")
    alert = {"streamId": "of-nobody", "severity": "low", "message": "m"}
    for path, method, bearer in (
        ("/streams", "GET", token),
        ("/alerts", "POST", token),
        ("/figures", "GET", token),
        ("/streams", "GET", "wrong"),
    ):
        head = f"{method} {path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {bearer}\r\n"
        body = json.dumps(alert) if method == "POST" else ""
        async with open_raw(relay) as client:
            await client.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            await client.read_to_end()
    await until(lambda: len(rows_of(accounts, "ann-8")) == 5)
    session = f"session-{token[:8]}"
    attempt = ("auth", "succeeded", "HTTP", None, session)
    may_not = ("refused", "You may not send alerts for this stream", "of-nobody", session)
    assert rows_of(accounts, "ann-8") == [
        *(attempt, attempt, ("alert", *may_not), attempt),
        ("figures", "refused", "This needs a service token that may operate", None, session),
    ]
    failed = (
        "select address, user_id, connection is null from relay.audit"
        " where what = 'auth' and outcome = 'failed' and reason = 'HTTP'"
    )
    await until(lambda: bool(accounts.execute(failed)))  # it may be in a batch of its own
    assert accounts.execute(failed) == [("127.0.0.1", None, False)]


async def test_who_looks_at_the_figures_again_and_again_is_one_row(
    relay: RelayProcess, accounts: Accounts
) -> None:
    names = []
    for _ in range(2):
        token = accounts.service(operate=True)
        names.append(f"service-{token[-8:]}")
        for path in ("/figures", "/figures", "/streams", "/figures"):
            answer = await relay.get(path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status == 200
    rows = "select what, outcome from relay.audit where service = %s"
    await until(lambda: len(accounts.execute(rows, names[-1])) >= 2)
    for name in names:
        assert accounts.execute(rows, name) == [("auth", "succeeded")] * 2


async def test_prometheus_can_read_the_figures(relay: RelayProcess) -> None:
    answer = await relay.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'\nrelay_service_state{service="audit",state="running"} 1.0\n' in answer.body
    assert (await relay.get("/metrics", method="HEAD")).body == b""
    assert (await relay.get("/metrics?token=x")).status == 400
    assert list(await relay.stats()) == list(StatsReport.__struct_fields__)
