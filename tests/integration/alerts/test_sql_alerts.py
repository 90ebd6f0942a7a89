"""Alerts that backends raise by SQL: checked like others, stored by a relay after the commit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.model.alerts.alert import NewAlert
from relay.postgres.database import Database, open_database
from relay.postgres.tables.alerts.alerts import LOCK_ALERTS, AlertTable
from relay.postgres.tables.stream_owners import lock_stream
from relay.postgres.tables.streams import StreamTable

RAISE = "select relay.raise_alert('porch', %s)"


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with open_database(postgres_url) as database:
        await StreamTable(database).claim("porch", "ada")
        yield database


@pytest.fixture
def backend_url(postgres_url: str) -> Iterator[str]:
    """A role that may do what docs/operations.md grants it, and nothing else."""
    role = str(conninfo_to_dict(postgres_url)["dbname"]) + "_backend"
    with connected(postgres_url) as owner:
        owner.execute(f"create role {role} login password 'backend'".encode())
        owner.execute(f"grant usage on schema relay to {role}".encode())
        owner.execute(f"grant execute on function relay.raise_alert to {role}".encode())
        yield make_conninfo(postgres_url, user=role, password="backend")
        owner.execute(f"drop owned by {role}".encode())
        owner.execute(f"drop role {role}".encode())


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def one_more(url: str, message: str) -> None:
    with connected(url) as connection:
        connection.execute(RAISE, [message])


async def messages(database: Database) -> list[str]:
    return [alert.message for alert in await AlertTable(database).after(0)]


async def test_a_backend_needs_to_be_allowed_nothing_but_to_raise_them(
    backend_url: str, database: Database
) -> None:
    with connected(backend_url) as backend:
        backend.execute(RAISE, ["Smoke"])
        for statement in (
            "select * from relay.alerts",
            "select * from relay.raised_alerts",
            "select relay.store_alerts('{porch}', '{x}', '{low}', '{m}', '{1}', '{null}', '{k}')",
            "select relay.wrong_with_metadata('{}')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                backend.execute(statement.encode())
    assert await messages(database) == ["Smoke"]


async def test_who_was_not_allowed_to_raises_none(backend_url: str, postgres_url: str) -> None:
    with connected(postgres_url) as owner, connected(backend_url) as backend:
        role = conninfo_to_dict(backend_url)["user"]
        owner.execute(f"revoke execute on function relay.raise_alert from {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            backend.execute(RAISE, ["Smoke"])


async def test_what_is_left_out_has_a_default(backend_url: str, database: Database) -> None:
    before = datetime.now(UTC).timestamp() * 1000
    one_more(backend_url, "Smoke")
    [alert] = await AlertTable(database).after(0)
    assert (alert.stream_id, alert.owner_id, alert.message) == ("porch", "ada", "Smoke")
    assert (alert.severity, alert.metadata) == ("medium", None)
    assert alert.sender == f"sql:{conninfo_to_dict(backend_url)['user']}"
    assert before - 1000 < alert.timestamp < before + 60_000


async def test_all_of_it_can_be_said(backend_url: str, database: Database) -> None:
    with connected(backend_url) as backend:
        backend.execute(
            "select relay.raise_alert('porch', 'Smoke', severity => 'critical', alert_key => 'k',"
            " metadata => jsonb_build_object('zone', 3, 'é', array[1.5]), sender => 'service:fire',"
            " seen_at => '2024-01-02 03:04:05.678+00')"
        )
    [alert] = await AlertTable(database).after(0)
    assert (alert.severity, alert.sender) == ("critical", "service:fire")
    assert alert.metadata == {"zone": 3, "é": [1.5]}
    assert alert.timestamp == 1_704_164_645_678


async def test_the_same_key_is_the_same_alert_on_every_way(
    backend_url: str, database: Database
) -> None:
    given = NewAlert("porch", "service:fire", "high", "first", 1, alert_key="k")
    [first] = await AlertTable(database).store([given])
    with connected(backend_url) as backend:
        for key in ("k", "k", "other"):
            backend.execute(
                "select relay.raise_alert('porch', 'Smoke', alert_key => %s,"
                " sender => 'service:fire')",
                [key],
            )
        backend.execute("select relay.raise_alert('porch', 'By another', alert_key => 'k')")
    assert await messages(database) == ["first", "Smoke", "By another"]
    assert await AlertTable(database).store([given]) == [first]


async def test_one_that_is_rolled_back_is_none(backend_url: str, database: Database) -> None:
    with psycopg.connect(backend_url) as backend:
        backend.execute(RAISE, ["kept"])
        backend.execute("savepoint here")
        backend.execute(RAISE, ["rolled back to the savepoint"])
        backend.execute("rollback to here")
        backend.execute(RAISE, ["kept, too"])
        backend.commit()
        backend.execute(RAISE, ["rolled back"])
        backend.rollback()
    assert await messages(database) == ["kept", "kept, too"]


async def test_a_transaction_that_stays_open_stops_nobody_and_comes_last(
    backend_url: str, database: Database
) -> None:
    """Whoever has read the alerts of the others meanwhile must not miss it."""
    with psycopg.connect(backend_url) as slow:
        slow.execute(RAISE, ["slow, first"])
        slow.execute(RAISE, ["slow, second"])
        with trio.fail_after(10):
            await AlertTable(database).store([NewAlert("porch", "s", "low", "relay's", 1)])
            await trio.to_thread.run_sync(one_more, backend_url, "another's")
        read = await AlertTable(database).after(0)
        assert [alert.message for alert in read] == ["relay's", "another's"]
        slow.commit()
    late = await AlertTable(database).after(read[-1].alert_id)
    assert [alert.message for alert in late] == ["slow, first", "slow, second"]


async def test_nothing_is_left_where_alerts_wait_for_their_commit(
    backend_url: str, database: Database, postgres_url: str
) -> None:
    one_more(backend_url, "Smoke")
    assert await messages(database) == ["Smoke"]
    with connected(postgres_url) as owner:
        assert owner.execute("select count(*) from relay.raised_alerts").fetchall() == [(0,)]


async def test_thousands_in_one_transaction_keep_their_order(
    backend_url: str, database: Database
) -> None:
    with connected(backend_url) as backend:
        backend.execute(
            "select relay.raise_alert('porch', n::text) from generate_series(1, 2000) as n"
        )
    assert await messages(database) == [str(n) for n in range(1, 501)]
    [last] = (await AlertTable(database).after(0, limit=2000))[-1:]
    assert last.message == "2000"


NEST = '{"a":' * 32 + "{}" + "}" * 32
WRONG: dict[str, tuple[str, dict[str, object], str, str]] = {
    "no such stream": ("nowhere", {}, "23503", "there is no stream 'nowhere'"),
    "a stream id that is none": ("po'rch\n", {}, "23503", "there is no stream"),
    "no severity": ("porch", {"severity": "HIGH"}, "22023", "'HIGH' is no severity"),
    "no stream": (None, {}, "22004", "has a stream"),  # type: ignore[dict-item]
    "a null": ("porch", {"severity": None}, "22004", "has a stream"),
    "no message": ("porch", {"message": None}, "22004", "has a stream"),
    "a long message": ("porch", {"message": "é" * 8193}, "22001", "8192 characters"),
    "a long key": ("porch", {"alert_key": "k" * 257}, "22001", "256 characters"),
    "an empty key": ("porch", {"alert_key": ""}, "22001", "256 characters"),
    "a long sender": ("porch", {"sender": "k" * 257}, "22001", "256 characters"),
    "an array": ("porch", {"metadata": "[1]"}, "22023", "an object, not a JSON array"),
    "a JSON null": ("porch", {"metadata": "null"}, "22023", "an object, not a JSON null"),
    "large": ("porch", {"metadata": json.dumps({"a": "x" * 65536})}, "54000", "65536 bytes"),
    "deep": ("porch", {"metadata": NEST}, "22023", "32 deep"),
    "deep in arrays": ("porch", {"metadata": '{"a":' + "[" * 32 + "]" * 32 + "}"}, "22023", "deep"),
    "a large number": ("porch", {"metadata": '{"a":[18446744073709551616]}'}, "22023", "2^64"),
    "infinity": ("porch", {"metadata": '{"a":1e400}'}, "22023", "2^64"),
    "a small number": ("porch", {"metadata": '{"a":{"b":-1e19}}'}, "22023", "2^63"),
    "U+0000": ("porch", {"metadata": '{"a":"\\u0000"}'}, "22P05", "unsupported Unicode"),
    "no JSON": ("porch", {"metadata": "{"}, "22P02", "invalid input syntax"),
    "never": ("porch", {"seen_at": "infinity"}, "22023", "between 1970 and 9999"),
    "long ago": ("porch", {"seen_at": "1969-12-31 UTC"}, "22023", "between 1970 and 9999"),
}


@pytest.mark.parametrize(("stream_id", "fields", "code", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_at_once(
    database_url: str, stream_id: str, fields: dict[str, object], code: str, text: str
) -> None:
    given = {"message": "Smoke", **fields}
    types = {"metadata": "::jsonb", "seen_at": "::timestamptz"}
    named = ", ".join(f"{name} => %({name})s{types.get(name, '')}" for name in given)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into relay.streams values ('porch', 'ada') on conflict do nothing"
        )
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(
                f"select relay.raise_alert(stream_id => %(stream_id)s, {named})".encode(),
                {"stream_id": stream_id, **given},
            )
    assert caught.value.sqlstate == code
    assert text in str(caught.value.diag.message_primary)
    if not code.startswith("22P"):
        assert caught.value.diag.message_hint


RIGHT = {
    "a long message": {"message": "é" * 8192},
    "an empty message": {"message": ""},
    "a long key": {"alert_key": "k" * 256},
    "deep": {"metadata": '{"a":' * 31 + "{}" + "}" * 31},
    "numbers": {"metadata": '{"a":[18446744073709551615,-9223372036854775808,1.5e-300]}'},
    "empty metadata": {"metadata": "{}"},
}


@pytest.mark.parametrize("fields", RIGHT.values(), ids=RIGHT)
async def test_what_fits_is_taken_and_can_be_read(
    database: Database, postgres_url: str, fields: dict[str, str]
) -> None:
    given = {"message": "Smoke", **fields}
    named = ", ".join(f"{name} => %({name})s{'::jsonb' * (name == 'metadata')}" for name in given)
    with connected(postgres_url) as connection:
        connection.execute(f"select relay.raise_alert('porch', {named})".encode(), given)
    [alert] = await AlertTable(database).after(0)
    assert alert.message == given["message"]
    assert alert.metadata == (json.loads(given["metadata"]) if "metadata" in given else None)


async def test_whoever_stands_still_with_the_lock_loses_it(
    database: Database, postgres_url: str
) -> None:
    patience = "show idle_in_transaction_session_timeout"
    with psycopg.connect(postgres_url) as still:
        still.execute(LOCK_ALERTS)
        assert still.execute(patience).fetchall() == [("5s",)]
        still.execute("set local idle_in_transaction_session_timeout = '50ms'")
        with trio.fail_after(10):
            await AlertTable(database).store([NewAlert("porch", "s", "low", "m", 1)])
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            still.execute("select 1")
        still.close()


ATTACKS = {
    "an open transaction": ["begin", "select relay.raise_alert('porch', 'held')"],
    "constraints at once": [
        "begin",
        "select relay.raise_alert('porch', 'held')",
        "set constraints all immediate",
        "set local idle_in_transaction_session_timeout = 0",
    ],
    "the advisory lock of earlier versions": [
        "select pg_advisory_lock(1919249505, 1)",
        "select pg_advisory_lock(1919249505)",
    ],
}


@pytest.mark.parametrize("statements", ATTACKS.values(), ids=ATTACKS)
async def test_a_role_that_may_raise_alerts_can_stop_no_other(
    backend_url: str, database: Database, statements: list[str]
) -> None:
    with connected(backend_url) as attacker:
        for statement in statements:
            attacker.execute(statement.encode())
        with trio.fail_after(10):
            one_more(backend_url, "another's")
            assert await messages(database) == ["another's"]
            [stored] = await AlertTable(database).store([NewAlert("porch", "s", "low", "m", 1)])
            assert stored is not None


async def test_a_role_that_may_raise_alerts_cannot_hold_their_lock(
    backend_url: str, database: Database
) -> None:
    modes = ("access share", "row share", "row exclusive", "exclusive", "access exclusive")
    tables = ("alert_order", "alerts", "raised_alerts", "streams")
    statements = [f"lock table relay.{table} in {mode} mode" for table in tables for mode in modes]
    with connected(backend_url) as attacker:
        for statement in ("select relay.lock_alerts()", *statements):
            attacker.execute("begin")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                attacker.execute(statement.encode())
            attacker.execute("rollback")


async def test_an_operator_who_changes_an_owner_holds_up_no_alert(
    backend_url: str, database: Database, postgres_url: str
) -> None:
    one_more(backend_url, "from SQL")
    with psycopg.connect(postgres_url) as operator:
        lock_stream(operator, "porch")
        [stored] = await AlertTable(database).store([NewAlert("porch", "s", "low", "sent", 1)])
        assert stored is not None
        assert await messages(database) == ["sent", "from SQL"]
        operator.execute("update relay.streams set owner_id = 'bob' where stream_id = 'porch'")


async def test_an_alert_whose_stream_is_gone_stops_none_behind_it(
    backend_url: str, database: Database, postgres_url: str
) -> None:
    await StreamTable(database).claim("shed", "ada")
    with connected(backend_url) as backend:
        backend.execute("select relay.raise_alert('shed', 'gone')")
        backend.execute(RAISE, ["Smoke"])
    with connected(postgres_url) as owner:
        owner.execute("delete from relay.streams where stream_id = 'shed'")
    assert await messages(database) == ["Smoke"]


async def test_an_alert_that_cannot_be_stored_stops_none_behind_it(
    backend_url: str, database: Database, postgres_url: str
) -> None:
    with connected(postgres_url) as owner:
        owner.execute("alter table relay.alerts add check (message <> 'refused')")
    for message in ("first", "refused", "last"):
        one_more(backend_url, message)
    assert await messages(database) == ["first", "last"]
    assert await messages(database) == ["first", "last"]


async def test_while_alerts_from_sql_cannot_be_stored_others_are_read(
    backend_url: str, postgres_url: str
) -> None:
    async with open_database(postgres_url, statement_timeout=0.2) as database:
        await StreamTable(database).claim("porch", "ada")
        await AlertTable(database).store([NewAlert("porch", "s", "low", "earlier", 1)])
        one_more(backend_url, "Smoke")
        with psycopg.connect(postgres_url) as still:
            still.execute(LOCK_ALERTS)
            assert await messages(database) == ["earlier"]
        assert await messages(database) == ["earlier", "Smoke"]


async def test_after_an_alert_a_session_may_be_as_idle_as_before(
    backend_url: str, database: Database
) -> None:
    with psycopg.connect(backend_url) as backend:
        backend.execute(RAISE, ["Smoke"])
        backend.commit()
        patience = "show idle_in_transaction_session_timeout"
        assert backend.execute(patience).fetchall() == [("0",)]
