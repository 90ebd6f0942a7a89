"""A real relay learns of ended sessions in a real Postgres, by notification or by polling."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest
import trio
from attrs import frozen

from relay.postgres.database import open_database
from relay.postgres.tables.sessions.sessions import find_better_auth
from relay.postgres.triggers import SessionTriggers
from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, run_relay, start_relay, until, within

REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))
DROP_TRIGGERS = "".join(
    f'drop trigger relay_watch_{event} on "{table}";'
    for table in ("user", "session")
    for event in ("update", "delete", "truncate")
)
LISTENERS = (
    "select pid from pg_stat_activity where datname = current_database()"
    " and query like 'listen %relay_changes%'"
)


@frozen
class Watched:
    """A relay, and how it hears of what changes in its database."""

    relay: RelayProcess
    accounts: Accounts

    async def is_ended_by(self, peer: Peer, statement: str, *values: object) -> None:
        """A statement ends a connection, within a second of its commit."""
        self.accounts.execute(statement, *values)
        async with within(1):
            heard, close = await peer.hear_end()
        assert (heard[-1]["code"], close) == REVOKED


@pytest.fixture(scope="module", params=["notifications", "polling"])
def watched(
    request: pytest.FixtureRequest, database_url: str, accounts: Accounts
) -> Iterator[Watched]:
    if request.param == "polling":
        accounts.execute(DROP_TRIGGERS)
    with start_relay(database_url=database_url) as relay:
        trio.run(relay.until_logged, f"by={request.param}")
        yield Watched(relay, accounts)


@pytest.mark.parametrize(
    "statement",
    [
        "update relay.streams set owner_id = 'bob' where stream_id = %s",
        "delete from relay.streams where stream_id = %s",
    ],
)
async def test_another_owner_in_sql_ends_the_stream_of_the_former_one(
    watched: Watched, statement: str
) -> None:
    ann, bob = watched.accounts.sessions(["ann", "bob"])
    stream_id = new_stream_id()
    async with (
        login(watched.relay, ann) as phone,
        login(watched.relay, ann) as viewer,
        login(watched.relay, bob) as new_phone,
    ):
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        await phone.send_frame(b"of ann")
        await viewer.receive_type("video-frame")
        watched.accounts.execute(statement, stream_id)
        async with within(1):
            heard, close = await phone.hear_end()
        assert (heard[-1]["code"], close) == (
            "UNAUTHORIZED",
            (4009, "stream has another owner"),
        )
        await new_phone.register(stream_id)
        await new_phone.send_frame(b"of bob")
        reply = await viewer.ask({"type": "unsubscribe", "streamId": stream_id})
        assert reply["code"] == "UNSUBSCRIBED"
    async with login(watched.relay, ann) as phone:
        reply = await phone.ask({"type": "register", "streamId": stream_id})
        assert (reply["code"], reply["message"]) == ("UNAUTHORIZED", "This stream id is taken")


async def test_a_logout_ends_the_connections_of_its_session_only(watched: Watched) -> None:
    token, other = watched.accounts.sessions(["ann", "ann"])
    async with (
        login(watched.relay, token) as one,
        login(watched.relay, token) as two,
        login(watched.relay, other) as unconcerned,
    ):
        await watched.is_ended_by(one, "delete from session where token = %s", token)
        assert (await two.hear_end())[1] == REVOKED[1]
        assert (await unconcerned.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_a_deleted_user_is_gone(watched: Watched) -> None:
    async with login(watched.relay, watched.accounts.session("deleted")) as peer:
        await watched.is_ended_by(peer, "delete from \"user\" where id = 'deleted'")


async def test_a_session_that_is_made_to_have_expired_is_over(watched: Watched) -> None:
    token = watched.accounts.session()
    async with login(watched.relay, token) as peer:
        await watched.is_ended_by(
            peer,
            "update session set \"expiresAt\" = now() - interval '1 s' where token = %s",
            token,
        )


async def test_a_session_that_is_cut_short_ends_when_it_says(watched: Watched) -> None:
    token = watched.accounts.session()
    async with login(watched.relay, token) as peer:
        watched.accounts.execute(
            "update session set \"expiresAt\" = now() + interval '2 s' where token = %s", token
        )
        async with within(1):
            assert (await peer.receive())["code"] == "SESSION_EXPIRING"
        (error,), close = await peer.hear_end()
        assert (error["code"], close) == REVOKED


async def test_a_session_expires_on_the_minute_by_the_database_s_clock(watched: Watched) -> None:
    token = watched.accounts.session(lasts=timedelta(seconds=2))
    start = trio.current_time()
    async with login(watched.relay, token) as peer, within(3.5):
        assert (await peer.receive())["code"] == "SESSION_EXPIRING"
        (error,), close = await peer.hear_end()
    assert (error["code"], close) == ("SESSION_EXPIRED", (4001, "session expired"))
    assert trio.current_time() - start > 1.5


async def test_a_session_that_slides_forward_lives_on(watched: Watched) -> None:
    token = watched.accounts.session(lasts=timedelta(seconds=2))
    async with login(watched.relay, token) as peer:
        watched.accounts.execute(
            "update session set \"expiresAt\" = now() + interval '1 h' where token = %s", token
        )
        await trio.sleep(3)
        assert (await peer.ask({"type": "streams"}))["code"] == "STREAMS"


async def test_a_revoked_service_token_ends_its_connections_also_if_the_name_is_given_anew(
    watched: Watched,
) -> None:
    token = watched.accounts.service("*")
    (name,) = watched.accounts.execute("select name from relay.service_tokens order by created_at")[
        -1
    ]
    async with login(watched.relay, token) as peer:
        with psycopg.connect(watched.accounts.url) as connection:
            connection.execute("delete from relay.service_tokens where name = %s", [name])
            connection.execute(
                "insert into relay.service_tokens values ('x', %s, '{*}', true, false, now())",
                [name],
            )
        async with within(1):
            heard, close = await peer.hear_end()
        assert (heard[-1]["code"], close) == REVOKED
    watched.accounts.execute("delete from relay.service_tokens where name = %s", name)


async def test_a_grant_and_its_withdrawal_count_within_a_second(watched: Watched) -> None:
    stream_id = new_stream_id()
    owner, viewer = watched.accounts.sessions(["ann", "bob"])
    async with login(watched.relay, owner) as phone, login(watched.relay, viewer) as bob:
        await phone.register(stream_id)
        await phone.send_frame(b"1")
        await bob.subscribe(stream_id)
        watched.accounts.execute("insert into relay.grants values ('bob', %s)", stream_id)
        async with within(1):
            assert (await bob.receive())["status"] == "streaming"
            assert (await bob.receive())["seq"] == 1
        watched.accounts.execute("delete from relay.grants where stream_id = %s", stream_id)
        async with within(1):
            status = await bob.receive()
        assert (status["status"], status["epoch"]) == ("offline", 0)
        await phone.send_frame(b"2")
        await phone.ask({"type": "streams"})
        await bob.ask({"type": "streams"})
        assert not bob.passed_over


async def test_all_that_is_truncated_is_gone(watched: Watched) -> None:
    async with login(watched.relay, watched.accounts.session()) as peer:
        await watched.is_ended_by(peer, "truncate session")


async def test_a_great_many_that_end_at_once_are_seen_to_end(watched: Watched) -> None:
    tokens = watched.accounts.sessions(["ann"] * 1500)
    async with login(watched.relay, tokens[0]) as one, login(watched.relay, tokens[-1]) as other:
        await watched.is_ended_by(one, "delete from session")
        assert (await other.hear_end())[1] == REVOKED[1]


async def test_when_the_listening_connection_is_killed_nothing_is_missed(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    token = accounts.session()
    with start_relay(database_url=postgres_url) as relay:
        await relay.until_logged("by=notifications")
        async with login(relay, token) as peer:
            ((pid,),) = accounts.execute(LISTENERS)
            with psycopg.connect(postgres_url) as connection:
                connection.execute("select pg_terminate_backend(%s)", [pid])
                connection.execute("delete from session")
            async with within(1):
                heard, close = await peer.hear_end()
            assert (heard[-1]["code"], close) == REVOKED
        await until(lambda: bool(accounts.execute(LISTENERS)))
        token = accounts.session()
        async with login(relay, token) as peer:
            await Watched(relay, accounts).is_ended_by(peer, "delete from session")


# -- the admin plugin's columns


STYLES = {"camel": '"banExpires"', "snake": "ban_expires"}


@asynccontextmanager
async def admin_relay(url: str, style: str) -> AsyncIterator[Watched]:
    accounts = Accounts(url)
    accounts.execute(f'alter table "user" add banned boolean, add {STYLES[style]} timestamptz')
    with start_relay(database_url=url) as relay:
        await relay.until_logged("by=notifications")
        yield Watched(relay, accounts)


@pytest.mark.parametrize("style", STYLES)
async def test_who_is_banned_is_ended_and_does_not_get_in_until_the_ban_is_over(
    postgres_url: str, style: str
) -> None:
    async with admin_relay(postgres_url, style) as watched:
        accounts, relay = watched.accounts, watched.relay
        token = accounts.session("ann")
        async with login(relay, token) as peer:
            await watched.is_ended_by(peer, "update \"user\" set banned = true where id = 'ann'")
        for until_, gets_in in (("+ interval '1 h'", False), ("- interval '1 s'", True)):
            accounts.execute(f'update "user" set {STYLES[style]} = now() {until_}')
            async with login(relay, token) if gets_in else nobody(relay, token):
                pass
        accounts.execute('update "user" set banned = false')
        async with login(relay, token):
            pass


@asynccontextmanager
async def nobody(relay: RelayProcess, token: str) -> AsyncIterator[None]:
    """A token that does not get in."""
    with pytest.raises(AssertionError, match="AUTH_FAILED"):
        async with login(relay, token):
            pass
    yield


async def test_a_column_that_is_called_banned_and_is_none_is_not_the_plugin_s(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute("alter table \"user\" add banned text default 'yes'")
    with start_relay(database_url=postgres_url) as relay:
        async with login(relay, accounts.session()):
            pass


# -- the triggers


def test_migrate_puts_the_triggers_there_once_and_status_says_so(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)

    def said_to(*command: str) -> str:
        return call_relay(*command, database_url=postgres_url)[1]

    accounts.execute(DROP_TRIGGERS)
    said = said_to("db", "status")
    assert "sessions: checked every 0.5 s" in said
    assert "--watch-sessions" in said
    assert said_to("db", "migrate") == "nothing to do\n"
    command = ("db", "migrate", "--watch-sessions")
    assert "triggers" in said_to(*command)
    assert said_to(*command) == "nothing to do\n"
    said = said_to("db", "status")
    assert said == "up to date\nsessions: triggers report logouts at once\n"
    accounts.execute("alter table session disable trigger relay_watch_delete")
    assert "checked every" in said_to("db", "status")
    assert "triggers" in said_to(*command)


async def test_a_notification_carries_ids_and_never_a_token(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    token, service = accounts.session("ann"), accounts.service("*")
    with psycopg.connect(postgres_url, autocommit=True) as listener:
        listener.execute("listen relay_changes")
        accounts.execute('update session set "updatedAt" = now()')
        accounts.execute("delete from session")
        accounts.execute("update \"user\" set name = 'Ann'")
        accounts.execute("insert into relay.grants values ('ann', 'porch')")
        accounts.execute("delete from relay.service_tokens")
        accounts.execute("truncate session")
        accounts.execute("update \"user\" set name = 'Ann' where false")
        payloads = [each.payload for each in listener.notifies(timeout=1, stop_after=6)]
        payloads += [each.payload for each in listener.notifies(timeout=0)]
    session_id = f"session-{token[:8]}"
    assert payloads == [
        f"session:{session_id}",
        f"session:{session_id}",
        "user:ann",
        "user:ann",
        f"service:service-{service[-8:]}",
        "everything",
    ]


async def test_an_id_that_is_too_long_to_be_told_of_does_not_stop_a_logout(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    accounts.session("ann")
    accounts.execute("alter table session drop constraint session_pkey")
    accounts.execute("update session set id = repeat('é', 5000)")
    accounts.execute("delete from session")
    assert accounts.execute("select count(*) from session") == [(0,)]


async def test_sessions_that_are_views_cannot_be_watched_and_that_is_said(
    postgres_url: str,
) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute("alter table session rename to sessions")
    accounts.execute("create view public.session as select * from sessions")
    done = run_relay("db", "migrate", "--watch-sessions", database_url=postgres_url)
    assert done.returncode == 2
    assert done.stderr.startswith("relay: relay cannot watch Better Auth's tables: ")
    assert done.stderr.count("\n") == 1


async def test_triggers_on_tables_with_odd_names_are_found_again(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.execute('create schema "Auth ""v2"""')
    for table in ("user", "session"):
        accounts.execute(f'alter table "{table}" set schema "Auth ""v2"""')
    accounts.execute('alter table "Auth ""v2"""."session" rename to "User Sessions"')
    async with open_database(postgres_url) as database:
        sessions = await find_better_auth(
            database, schema='Auth "v2"', session_table="User Sessions"
        )
        triggers = SessionTriggers(database, sessions.tables)
        assert await triggers.installed()  # they moved with the tables
        accounts.execute('drop trigger relay_watch_delete on "Auth ""v2"""."User Sessions"')
        assert not await triggers.installed()
        assert await triggers.install()
        assert await triggers.installed()
