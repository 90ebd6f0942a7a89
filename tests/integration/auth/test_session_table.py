"""Session tables of hashed tokens, of hidden rows, and of no sessions at all."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from relay.doctor.checks import Finding, Outcome
from relay.doctor.database import DatabaseChecks
from relay.errors import RelayError
from relay.settings.settings import Settings
from relay.settings.tokens import TokenStorage
from tests.integration.accounts import Accounts
from tests.integration.peers import login, open_peer
from tests.integration.relay_process import RelayProcess, run_relay, start_relay

AWAY = ("AUTH_UNAVAILABLE", 4013)
WRONG = ("AUTH_FAILED", 1008)


async def refusal(relay: RelayProcess, token: str) -> tuple[str, int | None]:
    async with open_peer(relay) as peer:
        await peer.send({"type": "auth", "token": token})
        heard, (code, _) = await peer.hear_end()
        return heard[-1]["code"], code


async def doctor(url: str, storage: TokenStorage = "plain") -> Finding:
    checks = DatabaseChecks(Settings(database_url=url, auth_token_storage=storage)).checks()
    database, better_auth = (each for each in checks if each.name in {"database", "better-auth"})
    await database.look()
    return await better_auth.look()


def urlsafe(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode()


HASHES: dict[tuple[TokenStorage, str, str], Callable[[bytes], object]] = {
    ("sha256-hex", "text", "small"): bytes.hex,
    ("sha256-hex", "char(80)", "large"): lambda digest: digest.hex().upper(),
    ("sha256-hex", "bytea", "bytes"): lambda digest: digest,
    ("sha256-base64", "text", "padded"): lambda digest: base64.b64encode(digest).decode(),
    ("sha256-base64url", "text", "padded"): urlsafe,
    ("sha256-base64url", "varchar(60)", "bare"): lambda digest: urlsafe(digest).rstrip("="),
}


@pytest.mark.parametrize(("storage", "column", "form"), HASHES)
async def test_tokens_may_be_stored_as_hashes(
    postgres_url: str, storage: TokenStorage, column: str, form: str
) -> None:
    accounts = Accounts(postgres_url)
    token = accounts.session("ann")
    accounts.execute(f"alter table session alter token type {column} using token::{column}")
    stored = HASHES[storage, column, form](hashlib.sha256(token.encode()).digest())
    accounts.execute("update session set token = %s", stored)
    with start_relay("--auth-token-storage", storage, database_url=postgres_url) as relay:
        async with login(relay, token) as peer:
            if isinstance(stored, str):
                # What the database has is of no use to who reads it.
                assert await refusal(relay, stored.strip()) == WRONG
            assert await refusal(relay, "😀") == WRONG
            accounts.execute("delete from session")
            _, close = await peer.hear_end()
            assert close == (4501, "session revoked")


async def test_relay_makes_sessions_with_hashed_tokens(postgres_url: str) -> None:
    flags = ("--auth-token-storage", "sha256-hex")
    made = run_relay(
        *("token", "session", "--user", "ann@example.org", "--force", *flags),
        database_url=postgres_url,
    )
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    rows = Accounts(postgres_url).execute("select token from session")
    assert rows == [(hashlib.sha256(token.encode()).hexdigest(),)]
    with start_relay(*flags, database_url=postgres_url) as relay:
        async with login(relay, token):
            pass


async def test_tokens_of_64_hexadecimal_digits_are_taken_for_hashes(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    assert (await doctor(postgres_url)).outcome is Outcome.OK
    token = accounts.session("ann")
    assert (await doctor(postgres_url)).outcome is Outcome.OK
    mismatch = await doctor(postgres_url, "sha256-hex")
    assert mismatch.outcome is Outcome.WARN
    hashed = hashlib.sha256(token.encode()).hexdigest()
    accounts.execute("update session set token = %s", hashed)
    finding = await doctor(postgres_url)
    assert finding.outcome is Outcome.WARN
    assert "auth_token_storage" in finding.do
    assert hashed not in finding.said + finding.do
    assert (await doctor(postgres_url, "sha256-hex")).outcome is Outcome.OK
    with start_relay(database_url=postgres_url) as relay:
        assert await refusal(relay, token) == WRONG
        await relay.until_logged("64 hexadecimal digits")
        assert hashed not in relay.log


@pytest.mark.parametrize("rows", ["old", "none"])
async def test_a_table_without_new_rows_may_not_be_in_use(postgres_url: str, rows: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.session("ann")
    change = {
        "old": "update session set \"createdAt\" = now() - interval '30 days'",
        "none": "delete from session",
    }
    accounts.execute(change[rows])
    finding = await doctor(postgres_url)
    assert finding.outcome is Outcome.WARN
    assert {"old": "no new row for 30 days", "none": "has no row"}[rows] in finding.said
    assert "auth_session_url" in finding.do
    with start_relay(database_url=postgres_url) as relay:
        assert await refusal(relay, "a-token") == WRONG
        await relay.until_logged("auth_session_url")


async def test_tables_that_an_application_made_in_the_schema_of_relay_are_named(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute("create table relay.session (like public.session)")
    finding = await doctor(postgres_url)
    assert finding.outcome is Outcome.FAIL
    assert 'another table "session", in the schema "relay"' in finding.said
    assert "search_path" in finding.do
    with start_relay(database_url=postgres_url) as relay:
        assert await refusal(relay, "a-token") == WRONG
        await relay.until_logged("search_path")


@pytest.mark.parametrize("column", ["deletedAt", "revoked_at", "isRevoked"])
async def test_columns_that_may_mark_ended_sessions_are_named(
    postgres_url: str, column: str
) -> None:
    accounts = Accounts(postgres_url)
    gone, here = accounts.sessions(["ann", "bob"])
    accounts.execute(f'alter table session add column "{column}" text')
    finding = await doctor(postgres_url)
    assert finding.outcome is Outcome.WARN
    assert column in finding.said
    assert "a view" in finding.do
    accounts.execute(f'update session set "{column}" = now() where token = %s', gone)
    accounts.execute(
        'create view public.live_session as select id, token, "userId", "expiresAt", "createdAt"'
        f' from session where "{column}" is null'
    )
    view = ("--auth-session-table", "live_session")
    with start_relay(*view, database_url=postgres_url) as relay:
        async with login(relay, here):
            assert await refusal(relay, gone) == WRONG


async def test_a_schema_without_the_table_may_have_its_sessions_elsewhere(
    postgres_url: str,
) -> None:
    Accounts(postgres_url).execute("drop table session")
    done = run_relay("db", "status", database_url=postgres_url)
    assert "auth_session_url" in done.stdout


@pytest.fixture
def role(postgres_url: str) -> Iterator[str]:
    """The URL of the database for a role that may read and owns nothing."""
    name = f"role_{uuid4().hex}"
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:

        def execute(statement: str) -> None:
            connection.execute(sql.SQL(statement).format(role=sql.Identifier(name)))

        execute("create role {role} login password 'x'")
        execute("grant usage on schema public, relay to {role}")
        execute("grant all on all tables in schema public, relay to {role}")
        execute("grant all on all sequences in schema relay to {role}")
        yield make_conninfo(postgres_url, user=name, password="x")
        execute("drop owned by {role}")
        execute("drop role {role}")


@pytest.mark.parametrize("table", ["session", '"user"'])
@pytest.mark.parametrize("policy", ["none", "of another role", "that lets see none"])
async def test_row_level_security_that_hides_all_rows_makes_no_token_wrong(
    postgres_url: str, role: str, table: str, policy: str
) -> None:
    accounts = Accounts(postgres_url)
    token, other = accounts.sessions(["ann", "bob"])
    strict = ("--failed-token-rate", "1/hour", "--session-poll", "0.1")
    with start_relay(*strict, database_url=role) as relay:
        async with login(relay, token) as peer:
            accounts.execute(f"alter table {table} enable row level security")
            if policy == "of another role":
                accounts.execute(f"create policy theirs on {table} to pg_monitor using (true)")
            if policy == "that lets see none":
                accounts.execute(f"create policy nobodys on {table} using (false)")
            for _ in range(3):
                assert await refusal(relay, other) == AWAY
            finding = await doctor(role)
            assert finding.outcome is Outcome.FAIL
            assert "row level security hides all rows" in finding.said
            await relay.until_logged("row level security hides all rows")
            # Who is in stays in.
            assert (await peer.ask({"type": "streams"}))["code"] == "STREAMS"
            accounts.execute(f"create policy readable on {table} using (true)")
            async with login(relay, other):
                pass
            assert (await doctor(role)).outcome is Outcome.OK
            assert (await peer.ask({"type": "streams"}))["code"] == "STREAMS"


@pytest.mark.parametrize("policy", ["true", "false"])
async def test_row_level_security_of_an_empty_table_hides_nothing(
    postgres_url: str, role: str, policy: str
) -> None:
    accounts = Accounts(postgres_url)
    accounts.sessions(["ann"])
    accounts.execute("delete from session" if policy == "true" else "truncate session")
    accounts.execute("alter table session enable row level security")
    accounts.execute(f"create policy visible on session using ({policy})")
    with start_relay(database_url=role) as relay:
        assert await refusal(relay, "unknown") == WRONG
    assert (await doctor(role)).outcome is not Outcome.FAIL


@pytest.mark.parametrize(
    ("change", "back", "named"),
    [
        ("alter table session rename to se", "alter table se rename to session", "session"),
        (
            "alter table session rename token to t",
            "alter table session rename t to token",
            "token",
        ),
        (
            "alter table relay.grants rename to g",
            "alter table relay.g rename to grants",
            "relay.grants",
        ),
    ],
)
async def test_a_table_that_is_gone_makes_no_token_wrong_and_is_named(
    postgres_url: str, change: str, back: str, named: str
) -> None:
    accounts = Accounts(postgres_url)
    token, other = accounts.sessions(["ann", "bob"])
    with start_relay("--failed-token-rate", "1/hour", database_url=postgres_url) as relay:
        async with login(relay, token) as peer:
            accounts.execute(change)
            for _ in range(3):
                assert await refusal(relay, other) == AWAY
            assert (await peer.ask({"type": "streams"}))["code"] == "STREAMS"
            await relay.until_logged("relay doctor")
            checks = DatabaseChecks(Settings(database_url=postgres_url)).checks()
            await checks[0].look()
            said = ""
            for check in checks[1:3]:
                try:
                    finding = await check.look()
                except RelayError as error:
                    said += str(error)
                else:
                    said += finding.said if finding.outcome is Outcome.FAIL else ""
            assert named.removeprefix("relay.") in said
            accounts.execute(back)
            async with login(relay, other):
                pass
        lines = [line for line in relay.log.splitlines() if "relay doctor" in line]
        assert named in lines[0]
        assert len(lines) <= 3
        assert "Traceback" not in relay.log
