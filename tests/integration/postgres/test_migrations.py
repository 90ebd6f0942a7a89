"""relay's own tables: made once, by one process at a time, and never by an older relay."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.errors import ConfigError
from relay.postgres.database import open_database
from relay.postgres.migrate import MIGRATIONS_LOCK, migrate, pending

RELEASED = Path(str(resources.files("relay.postgres"))) / "migrations"


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "select tablename from pg_tables where schemaname = 'relay' order by tablename"
        )
        return [name for (name,) in rows]


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of migrations instead of relay's."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    return folder


async def test_migrations_are_applied_once(empty_postgres_url: str) -> None:
    async with open_database(empty_postgres_url) as database:
        waiting = await pending(database)
        assert waiting
        assert tables(empty_postgres_url) == []
        assert await migrate(database) == waiting
        assert await pending(database) == []
        assert await migrate(database) == []
    assert tables(empty_postgres_url) == [
        "alert_byte_changes",
        "alert_bytes",
        "alert_order",
        "alert_pictures",
        "alert_targets",
        "alerts",
        "audit",
        "claim_locks",
        "deleted_owners",
        "event_sources",
        "grants",
        "link_readers",
        "links",
        "live_streams",
        "migrations",
        "mqtt_streams",
        "nodes",
        "operator_requests",
        "picture_key",
        "push_key",
        "raised_alerts",
        "service_tokens",
        "stream_events",
        "streams",
        "target_cooldowns",
        "told_streams",
        "viewers_woken",
    ]


async def test_many_that_migrate_at_once_apply_everything_once(empty_postgres_url: str) -> None:
    applied: list[str] = []

    async def one() -> None:
        async with open_database(empty_postgres_url) as database:
            applied.extend(await migrate(database))

    async with open_database(empty_postgres_url) as database:
        waiting = await pending(database)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)
    assert applied == waiting


async def test_migrations_wait_longer_than_a_statement_may_take(empty_postgres_url: str) -> None:
    with psycopg.connect(empty_postgres_url) as other:
        other.execute(MIGRATIONS_LOCK)
        async with open_database(empty_postgres_url, statement_timeout=0.1) as database:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(migrate, database)
                await trio.to_thread.run_sync(wait_for_waiter, empty_postgres_url)
                other.rollback()
            assert await pending(database) == []


def wait_for_waiter(url: str) -> None:
    """Until someone has waited for a lock for longer than the timeout of the test above."""
    with psycopg.connect(url, autocommit=True) as connection:
        while not connection.execute(
            "select from pg_locks join pg_stat_activity using (pid) where not granted"
            " and datname = current_database() and now() - query_start > interval '0.3 s'"
        ).fetchall():
            connection.execute("select pg_sleep(0.01)")


async def test_migrations_run_in_the_order_of_their_numbers(
    empty_postgres_url: str, migrations: Path
) -> None:
    (migrations / "0002_fill.sql").write_text("insert into relay.a values (1); select '%s';")
    (migrations / "0001_make.sql").write_text("create table relay.a (n int)")
    (migrations / "README").write_text("not a migration")
    async with open_database(empty_postgres_url) as database:
        assert await migrate(database) == ["0001_make", "0002_fill"]
        (migrations / "0003_more.sql").write_text("create table relay.b (n int)")
        assert await migrate(database) == ["0003_more"]


async def test_a_migration_that_fails_leaves_nothing_of_any(
    empty_postgres_url: str, migrations: Path
) -> None:
    (migrations / "0001_make.sql").write_text("create table relay.a (n int)")
    (migrations / "0002_fail.sql").write_text("create table relay.b (n int); select 1 / 0")
    async with open_database(empty_postgres_url) as database:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await migrate(database)
        assert tables(empty_postgres_url) == []
        assert await pending(database) == ["0001_make", "0002_fail"]


async def test_webhooks_and_the_rights_to_them_outlast_their_move_to_a_table_of_all_targets(
    empty_postgres_url: str, limited_url: str, migrations: Path
) -> None:
    """A relay of before, and one of after, with the same role."""
    role = conninfo_to_dict(limited_url)["user"]
    names = sorted(each.name for each in RELEASED.iterdir())
    before = [each for each in names if each < "0020"]
    for name in before:
        (migrations / name).write_bytes((RELEASED / name).read_bytes())
    async with open_database(empty_postgres_url) as database:
        assert len(await migrate(database)) == len(before)
        run(
            empty_postgres_url,
            "insert into relay.webhooks (webhook_id, url, secret, owner_id, position)"
            " values ('wh_1', 'https://hook', 's', 'ada', 7)",
            f"grant usage on schema relay to {role}",
            f"grant select, update on relay.webhooks to {role}",
        )
        name = "0020_alert_targets.sql"
        (migrations / name).write_bytes((RELEASED / name).read_bytes())
        assert await migrate(database) == ["0020_alert_targets"]
    with psycopg.connect(limited_url) as connection:
        connection.execute("update relay.webhooks set position = 8")
        kept = connection.execute("select target_id, kind, position from relay.alert_targets")
        assert kept.fetchall() == [("wh_1", "webhook", 8)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from relay.webhooks")


async def test_a_newer_database_is_left_alone(postgres_url: str) -> None:
    run(postgres_url, "insert into relay.migrations (name) values ('9999_future')")
    async with open_database(postgres_url) as database:
        for act in (migrate, pending):
            with pytest.raises(ConfigError, match="newer relay: it has 9999_future"):
                await act(database)


@pytest.fixture
def limited_url(empty_postgres_url: str) -> Iterator[str]:
    """The same database, for a role that may make no schema in it."""
    role = str(conninfo_to_dict(empty_postgres_url)["dbname"]) + "_limited"
    run(empty_postgres_url, f"create role {role} login password 'limited'")
    yield make_conninfo(empty_postgres_url, user=role, password="limited")
    run(empty_postgres_url, f"drop owned by {role}", f"drop role {role}")


async def test_a_role_that_may_make_no_tables_is_told_so(limited_url: str) -> None:
    async with open_database(limited_url) as database:
        assert await pending(database)
        with pytest.raises(ConfigError, match="permission denied for database"):
            await migrate(database)


async def test_a_schema_that_was_made_for_the_role_is_enough(
    empty_postgres_url: str, limited_url: str
) -> None:
    role = conninfo_to_dict(limited_url)["user"]
    run(empty_postgres_url, f"create schema relay authorization {role}")
    async with open_database(limited_url) as database:
        assert await migrate(database)
        assert await pending(database) == []
