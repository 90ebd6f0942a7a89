"""The commands that work on a database, as they are typed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.model.access.identity import Identity, Service, User
from relay.postgres.store import open_store
from relay.settings.settings import Settings
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.relay_process import run_relay


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A place for a Postgres that runs as another user when the tests run as root."""
    with TemporaryDirectory(prefix="relay-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "data"


def relay(*arguments: str, database_url: str | None = None) -> tuple[int, str, str]:
    done = run_relay(*arguments, database_url=database_url)
    return done.returncode, done.stdout, done.stderr


def holder_of(token: str, settings: Settings) -> Identity:
    async def ask() -> Identity:
        async with open_store(settings) as store:
            found = await store.sessions.find([token]) | await store.service_tokens.find([token])
            return found[token]

    return trio.run(ask)


def test_a_session_on_relay_s_own_database_prints_its_token_and_nothing_else(
    data_dir: Path,
) -> None:
    begun = datetime.now(UTC)
    code, out, err = relay(
        *("token", "session", "--user", "ana@example.org", "--ttl", "12h"),
        *("--data-dir", str(data_dir)),
    )
    assert (code, err) == (0, "")
    token = out.removesuffix("\n")
    assert token.split() == [token]
    user = holder_of(token, Settings(data_dir=data_dir))
    assert isinstance(user, User)
    assert abs(user.expires_at - begun - timedelta(hours=12)) < timedelta(minutes=2)


def test_a_session_in_an_application_s_database_takes_force(postgres_url: str) -> None:
    arguments = ("token", "session", "--user", "ana@example.org")
    code, out, err = relay(*arguments, database_url=postgres_url)
    assert (code, out) == (2, "")
    assert err.startswith("relay: ")
    assert err.count("\n") == 1
    assert "--force" in err
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute('select count(*) from "user"').fetchall() == [(0,)]

    code, out, err = relay(*arguments, "--force", database_url=postgres_url)
    assert (code, err) == (0, "")
    assert isinstance(holder_of(out.strip(), Settings(database_url=postgres_url)), User)


def test_a_service_token_carries_what_it_was_given(postgres_url: str) -> None:
    code, out, err = relay(
        *("token", "service", "detector", "--consume", "door", "--consume", "yard", "--alerts"),
        database_url=postgres_url,
    )
    assert (code, err) == (0, "")
    service = holder_of(out.strip(), Settings(database_url=postgres_url))
    assert service == Service("detector", frozenset({"door", "yard"}), alerts=True, operate=False)

    code, out, err = relay("token", "service", "detector", database_url=postgres_url)
    assert (code, out) == (2, "")
    assert "already a service named 'detector'" in err


def test_a_service_token_for_cameras_names_the_user_who_owns_the_streams(
    postgres_url: str,
) -> None:
    Accounts(postgres_url).session("ann")
    made = ("token", "service", "cams", "--produce", "site-a:*")
    code, out, err = relay(*made, "--for", "ann@example.org", database_url=postgres_url)
    assert (code, err) == (0, "")
    service = holder_of(out.strip(), Settings(database_url=postgres_url))
    assert isinstance(service, Service)
    assert (service.produce, service.user_id) == (frozenset({"site-a:*"}), "ann")
    code, out, err = relay("token", "list", database_url=postgres_url)
    assert "produce=site-a:*\tfor=ann" in out


@pytest.mark.parametrize("half", [("--produce", "door"), ("--for", "ann")])
def test_what_a_service_produces_has_an_owner(postgres_url: str, half: tuple[str, str]) -> None:
    code, out, err = relay("token", "service", "cams", *half, database_url=postgres_url)
    assert (code, out) == (2, "")
    assert "--for USER belong together" in err


def test_a_service_token_that_allows_nothing_is_made_but_not_silently(
    postgres_url: str,
) -> None:
    code, out, err = relay("token", "service", "x", "--alerts", database_url=postgres_url)
    assert code == 0
    assert isinstance(holder_of(out.strip(), Settings(database_url=postgres_url)), Service)
    assert "--consume" in err


def test_migrate_brings_a_database_up_to_date_and_status_says_so(
    empty_postgres_url: str,
) -> None:
    database = ("--database-url", empty_postgres_url)
    code, missing, err = relay("db", "status", *database)
    assert (code, err) == (1, "")
    names = [line.removeprefix("missing ") for line in missing.splitlines()]
    assert names
    assert relay("db", "migrate", *database) == (
        0,
        "".join(f"applied {name}\n" for name in names),
        "",
    )
    assert relay("db", "migrate", *database) == (0, "nothing to do\n", "")
    code, said, err = relay("db", "status", *database)
    assert (code, err) == (0, "")
    assert said.splitlines()[0] == "up to date"


@pytest.fixture
def stranger_url(postgres_url: str) -> Iterator[str]:
    """The same database, for a role that may do nothing there."""
    role = str(conninfo_to_dict(postgres_url)["dbname"]) + "_stranger"
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(sql.SQL("create role {} login password 'x'").format(sql.Identifier(role)))
        yield make_conninfo(postgres_url, user=role, password="x")
        owner.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))
        owner.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


COMMANDS = [
    *(["db", "status"], ["token", "list"], ["grants"], ["webhook", "list"], ["audit"]),
    *(["serve", "--bind", "127.0.0.1:0"], ["db", "migrate", "--watch-sessions"]),
]


def test_a_role_without_rights_is_told_so_in_one_line(stranger_url: str, postgres_url: str) -> None:
    role = sql.Identifier(str(conninfo_to_dict(stranger_url)["user"]))
    for granted in ("usage on schema relay", "select on relay.migrations"):
        for command in COMMANDS:
            call = relay if command[0] == "serve" else call_relay
            code, out, err = call(*command, database_url=stranger_url)
            assert code == 2, (command, out, err)
            *_, line = err.splitlines()
            assert line.startswith("relay: "), err
            assert "permission denied for" in line
            assert "Traceback" not in err
        with psycopg.connect(postgres_url) as owner:
            owner.execute(sql.SQL("grant {} to {}").format(sql.SQL(granted), role))
    done = run_relay("db", "status", database_url=stranger_url)
    assert done.stdout.startswith("up to date\nsessions: relay cannot read Better Auth's tables")


def test_a_database_that_is_away_is_one_line() -> None:
    code, out, err = relay("db", "status", "--database-url", "postgresql://127.0.0.1:1/relay")
    assert (code, out) == (2, "")
    assert err.startswith("relay: cannot reach the database: ")
    assert err.count("\n") == 1
