"""Better Auth's tables with columns of other types and names, and times unknown to Python."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.doctor.checks import Finding, Outcome
from relay.doctor.database import DatabaseChecks
from relay.errors import ConfigError
from relay.postgres.database import open_database
from relay.postgres.migrate import migrate
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.conftest import PostgresServer
from tests.integration.peers import login, open_peer
from tests.integration.relay_process import start_relay

HOUR = timedelta(hours=1)
TOKEN = "a1B2" * 8


@pytest.fixture(scope="module")
def template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database with relay's tables and no others, of which each test gets a copy."""

    async def make(url: str) -> None:
        async with open_database(url) as database:
            await migrate(database)

    with postgres_server.database("template0") as url:
        trio.run(make, url)
        yield str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def empty_postgres_url(postgres_server: PostgresServer, template: str) -> Iterator[str]:
    with postgres_server.database(template) as url:
        yield url


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set search_path = public, relay")
        for statement in statements:
            connection.execute(statement.encode())


def make(url: str, *, user: str, session: str, token: str, reference: str, time: str) -> None:
    run(
        url,
        "create domain key32 as char(32) check (value <> '')",
        "create domain key as key32",
        "create domain number as bigint",
        "create domain moment as timestamptz not null",
        "create domain secret as text check (length(value) > 3)",
        f'create table "user" (id {user} primary key, email text, banned boolean)',
        f"create table session (id {session} primary key, token {token} unique,"
        f' "userId" {reference}, "expiresAt" {time}, "createdAt" timestamptz default now())',
    )


def value_of(kind: str) -> str:
    if kind in {"integer", "bigint", "number", "numeric", "smallint"}:
        return "31234"
    return str(uuid4()) if kind == "uuid" else TOKEN


KINDS = ("char(32)", "char(40)", "key", "uuid", "integer", "number", "varchar(40)", "numeric")


TOKENS = ("text", "char(32)", "char(64)", "key", "uuid", "secret")
PAIRS = [
    (kind, token, "text" if (row + column) % 2 else kind)
    for row, kind in enumerate(KINDS)
    for column, token in enumerate(TOKENS)
]
"""Each two of the three stand together: ids, tokens, and what `userId` is of: the same, or text."""


@pytest.mark.parametrize(("kind", "token", "reference"), PAIRS)
async def test_a_session_is_found_and_read_again(
    empty_postgres_url: str, kind: str, token: str, reference: str
) -> None:
    make(
        empty_postgres_url, user=kind, session=kind, token=token, reference=reference, time="moment"
    )
    user_id, session_id, secret = value_of(kind), value_of(kind), value_of(token)
    run(
        empty_postgres_url,
        f"insert into \"user\" values ('{user_id}', 'ada@example.org', false)",
        f"insert into session values ('{session_id}', '{secret}', '{user_id}',"
        " now() + interval '1 hour')",
        f"insert into relay.grants values ('{user_id}', 'porch')",
    )
    async with open_database(empty_postgres_url) as database:
        sessions = await find_better_auth(database)
        others = ["😀", "\0", "x", "", "1", secret.swapcase(), f"{secret} ", "9" * 30, "0x1", "{}"]
        found = await sessions.find([*others, secret])
        assert {each.user_id for each in found.values()} <= {user_id}
        user = found[secret]
        assert (user.user_id, user.session_id, user.granted) == (
            user_id,
            session_id,
            frozenset({"porch"}),
        )
        assert await sessions.read([session_id, "other", "😀"]) == {session_id: user}
        assert await sessions.find([secret[:1]]) == {}
        assert await sessions.granted_to([user_id]) == {user_id: frozenset({"porch"})}
        assert await sessions.find_user("ada@example.org") == user_id
        run(empty_postgres_url, 'update "user" set banned = true')
        assert await sessions.granted_to([user_id, "no user"]) == {"no user": frozenset()}
        assert await sessions.find([secret]) == {}


async def test_an_identity_of_char_stays_as_it_is(empty_postgres_url: str) -> None:
    make(
        empty_postgres_url,
        user="char(32)",
        session="char(32)",
        token="char(32)",
        reference="char(32)",
        time="timestamptz",
    )
    run(
        empty_postgres_url,
        f"insert into \"user\" values ('{TOKEN}')",
        f"insert into session values ('{TOKEN}', '{TOKEN}', '{TOKEN}', 'infinity')",
    )
    with start_relay(database_url=empty_postgres_url) as relay:
        async with open_peer(relay) as viewer:
            reply = await viewer.authenticate(TOKEN)
            assert (reply["code"], reply["userId"]) == ("AUTHENTICATED", TOKEN)
            for _ in range(5):
                await viewer.ask({"type": "streams"})
        assert "revoked" not in relay.log


async def test_views_with_names_of_their_own(empty_postgres_url: str) -> None:
    run(
        empty_postgres_url,
        "create table people (key uuid primary key default gen_random_uuid(), blocked boolean)",
        "create table logins (key serial, session_token text, until timestamptz, person uuid)",
        'create view "user" as select key, blocked from people',
        'create view session as select key, session_token as "sessionToken", until as expires,'
        " person from logins",
        "insert into people default values",
        "insert into logins (session_token, until, person)"
        " select 'token', now() + interval '1 hour', key from people",
    )
    columns = {"id": "key", "token": "sessionToken", "expiresAt": "expires", "userId": "person"}
    async with open_database(empty_postgres_url) as database:
        sessions = await find_better_auth(
            database,
            user_columns={"id": "key", "banned": "blocked"},
            session_columns=columns,
        )
        assert list(await sessions.find(["token"])) == ["token"]
        with pytest.raises(ConfigError, match="no column untill"):
            await find_better_auth(
                database,
                user_columns={"id": "key"},
                session_columns={**columns, "expiresAt": "untill"},
            )
    options = [f"{field}={column}" for field, column in columns.items()]
    run(empty_postgres_url, "update people set blocked = false")
    with start_relay(
        "--auth-user-columns",
        "id=key,banned=blocked",
        "--auth-session-columns",
        ",".join(options),
        database_url=empty_postgres_url,
    ) as relay:
        async with login(relay, "token") as viewer:
            assert (await viewer.ask({"type": "streams"}))["code"] == "STREAMS"


ENDED = ("-infinity", "4713-01-01 BC", "0001-01-01 BC", "1900-01-01", None)
LASTING = ("infinity", "9999-12-31 23:59:59.999999", "10000-01-01", "294276-12-31 23:59:59")


@pytest.fixture(params=["timestamptz", "timestamp"])
async def timed_url(empty_postgres_url: str, request: pytest.FixtureRequest) -> str:
    make(
        empty_postgres_url,
        user="text",
        session="text",
        token="text",
        reference="text",
        time=request.param,
    )
    run(empty_postgres_url, "insert into \"user\" values ('ann')")
    with psycopg.connect(empty_postgres_url) as connection:
        for number, expires in enumerate((*ENDED, *LASTING)):
            connection.execute(
                "insert into session values (%s, %s, 'ann', %s)",
                [f"id {number}", str(expires), expires],
            )
    return empty_postgres_url


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles", "Pacific/Kiritimati"])
async def test_any_time_is_read_and_what_has_ended_is_told(timed_url: str, zone: str) -> None:
    async with open_database(timed_url) as database:
        sessions = await find_better_auth(database, time_zone=zone)
        found = await sessions.find([str(each) for each in (*ENDED, *LASTING)])
        assert set(found) == set(LASTING)
        read = await sessions.read([f"id {n}" for n in range(len((*ENDED, *LASTING)))])
    now = datetime.now(UTC)
    ended = [read[f"id {n}"].expires_at < now for n in range(len(read))]
    assert ended == [True] * len(ENDED) + [False] * len(LASTING)
    assert all((read[f"id {n}"].remaining or 0) < 0 for n in range(len(ENDED)))


@pytest.mark.parametrize("expires", ["-infinity", None])
async def test_an_odd_expiry_ends_its_session_and_others_are_watched(
    postgres_url: str, expires: str | None
) -> None:
    accounts = Accounts(postgres_url)
    run(postgres_url, 'alter table session alter "expiresAt" drop not null')
    ann, bob, carl = accounts.sessions(["ann", "bob", "carl"])
    with start_relay(database_url=postgres_url) as relay:
        async with (
            login(relay, ann) as odd,
            login(relay, bob) as other,
            login(relay, carl) as third,
        ):
            accounts.execute('update session set "expiresAt" = %s where token = %s', expires, ann)
            heard, close = await odd.hear_end()
            assert heard[-1]["code"] in {"SESSION_REVOKED", "SESSION_EXPIRED"}
            accounts.execute("delete from session where token = %s", bob)
            heard, close = await other.hear_end()
            assert close == (4501, "session revoked")
            assert (await third.ask({"type": "streams"}))["code"] == "STREAMS"
        assert "Traceback" not in relay.log


async def odd_times(
    url: str, ago: timedelta, *, zone: str = "UTC", count: int = 1
) -> tuple[list[str], Finding]:
    run(
        url,
        *(f'alter table session alter "{c}" type timestamp' for c in ("createdAt", "expiresAt")),
    )
    tokens = Accounts(url).sessions(["ann"] * count)
    made = datetime.now(UTC).replace(tzinfo=None) - ago
    with psycopg.connect(url, autocommit=True) as connection:
        for number, token in enumerate(tokens):
            connection.execute(
                'update session set "createdAt" = %s, "expiresAt" = %s where token = %s',
                [made + timedelta(milliseconds=number), made + timedelta(days=7), token],
            )
    checks = DatabaseChecks(Settings(database_url=url, auth_time_zone=zone)).checks()
    found = {}
    for check in checks:
        if check.name in {"database", "better-auth"}:
            found[check.name] = await check.look()
    return tokens, found["better-auth"]


@pytest.mark.parametrize(
    ("ago", "seems"),
    [(timedelta(hours=-2), "+2:00 h"), (timedelta(hours=5), "-5:00 h"), (5.75 * HOUR, "-5:45 h")],
)
async def test_local_times_are_noticed(postgres_url: str, ago: timedelta, seems: str) -> None:
    tokens, finding = await odd_times(postgres_url, ago, count=2)
    assert finding.outcome is Outcome.WARN
    assert seems in finding.said
    assert "auth_time_zone" in finding.do
    with start_relay(database_url=postgres_url) as relay:
        for token in tokens:
            async with login(relay, token):
                pass
        await relay.until_logged("auth_time_zone")
        assert seems in relay.log


@pytest.mark.parametrize("ago", [timedelta(0), timedelta(minutes=7), timedelta(days=3)])
async def test_times_as_they_should_be_are_no_reason_to_warn(
    postgres_url: str, ago: timedelta
) -> None:
    _, finding = await odd_times(postgres_url, ago)
    assert finding.outcome is Outcome.OK


async def test_a_zone_is_what_times_without_one_are_in(postgres_url: str) -> None:
    zone = "Asia/Kathmandu"  # 5:45 ahead
    tokens, finding = await odd_times(postgres_url, -5.75 * HOUR, zone=zone)
    assert finding.outcome is Outcome.OK
    async with open_database(postgres_url) as database:
        sessions = await find_better_auth(database, time_zone=zone)
        (user,) = (await sessions.find(tokens)).values()
        made = await sessions.create("ada@example.org", HOUR)
        (new,) = (await sessions.find([made])).values()
        with pytest.raises(ConfigError, match="auth_time_zone"):
            await find_better_auth(database, time_zone="Asia/Nowhere")
    day = timedelta(days=1)
    assert abs(user.expires_at - datetime.now(UTC) - 7 * day) < timedelta(minutes=1)
    assert abs(new.expires_at - datetime.now(UTC) - HOUR) < timedelta(minutes=1)


async def test_an_offset_is_ahead_of_utc_if_it_is_positive(postgres_url: str) -> None:
    """Postgres by itself reads the sign the other way round, as POSIX does."""
    tokens, _ = await odd_times(postgres_url, -5.75 * HOUR)
    end = datetime.now(UTC) + timedelta(days=7)
    async with open_database(postgres_url) as database:
        for zone in ("+05:45", "+0545", "UTC+5:45", "gmt+05:45", "<+0545>-5:45", "5:45"):
            sessions = await find_better_auth(database, time_zone=zone)
            (user,) = (await sessions.find(tokens)).values()
            assert abs(user.expires_at - end) < timedelta(minutes=1), zone
        for zone, hours in (("-5", 5), ("UTC-05:00", 5), ("Etc/GMT+5", 5), ("EST", 5), ("UTC", 0)):
            sessions = await find_better_auth(database, time_zone=zone)
            (user,) = (await sessions.find(tokens)).values()
            later = (5.75 + hours) * HOUR
            assert abs(user.expires_at - end - later) < timedelta(minutes=1), zone


async def test_the_right_to_read_what_is_needed_is_enough(postgres_url: str) -> None:
    role = str(conninfo_to_dict(postgres_url)["dbname"]) + "_reader"
    run(
        postgres_url,
        'alter table session alter "createdAt" type timestamp',
        f"create role {role} login password 'reader'",
        f"grant usage on schema relay to {role}",
        f"grant select on all tables in schema relay to {role}",
        f'grant select (id, token, "userId", "expiresAt") on session to {role}',
        f'grant select (id) on "user" to {role}',
    )
    token = Accounts(postgres_url).session("ann")
    try:
        url = make_conninfo(postgres_url, user=role, password="reader")
        async with open_database(url) as database:
            sessions = await find_better_auth(database)
            assert list(await sessions.find([token])) == [token]
            assert await sessions.newest_ages() == []
    finally:
        run(postgres_url, f"drop owned by {role}", f"drop role {role}")
