"""An operator's hand: whose a stream is, and which connections end, with commands and over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from relay.model.alerts.alert import NewAlert
from relay.postgres.database import open_database
from relay.postgres.tables.alerts.alerts import AlertTable
from relay.postgres.tables.streams import StreamTable
from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess, Response, run_relay, within

REVOKED = ("SESSION_REVOKED", (4501, "session revoked"))
ENDED = ("ENDED_BY_OPERATOR", (4010, "ended by an operator"))
LOST = ("UNAUTHORIZED", (4009, "stream has another owner"))


def command(accounts: Accounts, *arguments: str) -> tuple[int, str]:
    done = run_relay(*arguments, database_url=accounts.url)
    return done.returncode, done.stdout + done.stderr


async def command_beside(accounts: Accounts, *arguments: str) -> tuple[int, str]:
    return await trio.to_thread.run_sync(command, accounts, *arguments)


async def post(relay: RelayProcess, token: str, path: str, **body: Any) -> Response:
    return await relay.get(
        f"/operate/{path}",
        "POST",
        headers={"Authorization": f"Bearer {token}"},
        body=json.dumps(body).encode(),
    )


async def is_ended(peer: Peer, how: tuple[str, tuple[int, str]]) -> None:
    async with within(5):
        heard, close = await peer.hear_end()
    assert (heard[-1]["code"], close) == how


def audited(accounts: Accounts, what: str, stream_id: str | None = None) -> tuple[Any, ...]:
    """The last event: its outcome, its reason, the user, the service, and where it came from."""
    (row,) = accounts.execute(
        "select outcome, reason, user_id, service, address from relay.audit where what = %s"
        " and stream_id is not distinct from coalesce(%s, stream_id)"
        " order by audit_id desc limit 1",
        what,
        stream_id,
    )
    return row


# -- streams


async def test_a_stream_is_transferred_and_its_producer_loses_it(
    relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    ann, bob = accounts.sessions(["ann", "bob"])
    async with login(relay, ann) as phone:
        await phone.register(stream_id)
        done = await command_beside(accounts, "stream", "transfer", stream_id, "bob@example.org")
        assert done == (0, f"{stream_id} now belongs to bob (before: ann)\n")
        await is_ended(phone, LOST)
    async with login(relay, bob) as phone:
        await phone.register(stream_id)
    assert audited(accounts, "transfer", stream_id) == (
        *("succeeded", "from ann", "bob", None, "command line"),
    )
    assert command(accounts, "stream", "transfer", stream_id, "bob") == (
        *(0, f"{stream_id} already belongs to bob\n"),
    )


def test_history_comes_along_only_where_that_is_said(accounts: Accounts) -> None:
    accounts.sessions(["ann", "bob"])

    async def make(stream_id: str) -> None:
        async with open_database(accounts.url) as database:
            await StreamTable(database).claim(stream_id, "ann")
            await AlertTable(database).store([NewAlert(stream_id, "user:ann", "low", "m", 0)])

    def visible(stream_id: str) -> int:
        query = (
            "select count(*) from relay.alerts a join relay.streams s using (stream_id)"
            " where stream_id = %s and a.alert_id > s.alerts_from and a.life = s.life"
        )
        ((count,),) = accounts.execute(query, stream_id)
        return int(count)

    for options, kept in (([], 0), (["--with-history"], 1)):
        stream_id = new_stream_id()
        trio.run(make, stream_id)
        accounts.execute("insert into relay.grants values ('eve', %s)", stream_id)
        code, _ = command(accounts, "stream", "transfer", stream_id, "bob", *options)
        assert code == 0
        assert visible(stream_id) == kept
        grants = accounts.execute("select 1 from relay.grants where stream_id = %s", stream_id)
        assert len(grants) == kept
        assert audited(accounts, "transfer", stream_id)[1] == "from ann" + ", with history" * kept
    # Only that one transaction.
    accounts.execute("update relay.streams set owner_id = 'ann' where stream_id = %s", stream_id)
    assert visible(stream_id) == 0


async def test_a_freed_stream_is_the_next_users(relay: RelayProcess, accounts: Accounts) -> None:
    stream_id = new_stream_id()
    ann, bob = accounts.sessions(["ann", "bob"])
    async with login(relay, ann) as phone:
        await phone.register(stream_id)
        assert await command_beside(accounts, "stream", "free", stream_id) == (
            *(0, f"{stream_id} now belongs to nobody (before: ann)\n"),
        )
        await is_ended(phone, LOST)
    assert audited(accounts, "free", stream_id) == (
        *("succeeded", "freed", "ann", None, "command line"),
    )
    assert command(accounts, "stream", "free", stream_id)[1] == (
        f"{stream_id} already belongs to nobody\n"
    )
    async with login(relay, bob) as phone:
        await phone.register(stream_id)
    code, listed = command(accounts, "stream", "list", "--owner", "bob@example.org")
    assert code == 0
    assert [line.split("\t")[:2] for line in listed.splitlines() if stream_id in line] == [
        [stream_id, "owner=bob"]
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stream", "transfer", "nowhere", "ann"), "there is no stream 'nowhere'"),
        (("stream", "free", "nowhere"), "there is no stream 'nowhere'"),
        (("stream", "transfer", "nowhere", "nobody"), "there is no user 'nobody'"),
        (("stream", "free", "a b"), "A-Z a-z 0-9"),
        (("stream", "transfer", "a*", "ann"), "A-Z a-z 0-9"),
        (("user", "end", "nobody@example.org"), "there is no user"),
        (("connection", "end", "0"), "0 is not in the range"),
        (("connection", "end", "x"), "'x' is not a whole number"),
    ],
)
def test_what_cannot_be_done_is_said(
    accounts: Accounts, arguments: tuple[str, ...], said: str
) -> None:
    accounts.session("ann")
    code, out = command(accounts, *arguments)
    assert code == 2
    assert said in out
    assert out.count("\n") == 1


async def test_an_owner_is_gone_when_the_user_was_deleted(
    relay: RelayProcess, accounts: Accounts
) -> None:
    gone, here = new_stream_id(), new_stream_id()
    user = f"guest of {gone}"
    for stream_id, owner in ((gone, user), (here, "ann")):
        async with login(relay, accounts.session(owner)) as phone:
            await phone.register(stream_id)
    accounts.execute('delete from "user" where id = %s', user)
    code, listed = await command_beside(accounts, "stream", "list", "--gone")
    assert code == 0
    assert gone in listed
    assert "\tgone=20" in listed
    assert here not in listed


# -- connections


async def test_the_connections_of_a_user_end_and_no_others(
    relay: RelayProcess, accounts: Accounts
) -> None:
    user = f"user-{new_stream_id()}"
    one, other, ann = accounts.sessions([user, user, "ann"])
    async with (
        login(relay, one) as first,
        login(relay, other) as second,
        login(relay, ann) as third,
    ):
        done = await command_beside(accounts, "user", "end", f"{user}@example.org")
        assert done == (0, f"ended 2 connections of {user}\n")
        await is_ended(first, REVOKED)
        await is_ended(second, REVOKED)
        assert (await third.ask({"type": "streams"}))["code"] == "STREAMS"
    assert audited(accounts, "end") == (
        *("succeeded", "connections of a user", user, None, "command line"),
    )
    done = await command_beside(accounts, "user", "end", user)
    assert done == (0, f"ended 0 connections of {user}\n")


async def connection_of(accounts: Accounts, user: str) -> int:
    query = "select connection from relay.audit where what = 'auth' and user_id = %s"
    with trio.fail_after(PATIENCE):
        while not (rows := accounts.execute(query, user)):  # noqa: ASYNC110 - rows come later
            await trio.sleep(0.05)
    return int(rows[-1][0])


async def test_one_connection_ends(relay: RelayProcess, accounts: Accounts) -> None:
    user = f"user-{new_stream_id()}"
    async with login(relay, accounts.session(user)) as peer:
        number = str(await connection_of(accounts, user))
        code, said = await command_beside(
            accounts, "connection", "end", number, "--user", "somebody"
        )
        assert (code, said) == (2, f"relay: there is no connection {number} of somebody\n")
        assert audited(accounts, "end") == (
            *("refused", "one connection: there is none", "somebody", None, "command line"),
        )
        done = await command_beside(accounts, "connection", "end", number, "--user", user)
        assert done == (0, f"ended 1 connection with the number {number}\n")
        await is_ended(peer, ENDED)
    assert audited(accounts, "end")[:2] == ("succeeded", "one connection")


def test_without_a_relay_nobody_answers(postgres_url: str) -> None:
    accounts = Accounts(postgres_url)
    accounts.session("ann")
    code, said = command(accounts, "user", "end", "ann")
    assert code == 2
    assert "no relay that uses this database looked" in said
    assert audited(accounts, "end")[:2] == (
        *("unavailable", "connections of a user: no relay has answered"),
    )


# -- over HTTP


async def test_an_operator_does_the_same_over_http(relay: RelayProcess, accounts: Accounts) -> None:
    stream_id, user = new_stream_id(), f"user-{new_stream_id()}"
    token = accounts.service(operate=True)
    name = f"service-{token[-8:]}"
    owner = accounts.session(user)
    accounts.session("bob")
    async with login(relay, owner) as phone:
        await phone.register(stream_id)
        listed = await relay.get(
            f"/operate/streams?userId={user}", headers={"Authorization": f"Bearer {token}"}
        )
        by_address = await relay.get(
            f"/operate/streams?userId={user}@example.org",
            headers={"Authorization": f"Bearer {token}"},
        )
        assert by_address.json() == listed.json()
        ((entry),) = listed.json()["streams"]
        assert (entry["streamId"], entry["ownerId"], entry["goneSince"]) == (stream_id, user, None)
        answer = await post(relay, token, "streams/transfer", streamId=stream_id, userId="bob")
        assert answer.json() == {"streamId": stream_id, "ownerId": "bob", "formerOwnerId": user}
        await is_ended(phone, LOST)
    outcome, reason, who, service, address = audited(accounts, "transfer", stream_id)
    assert (outcome, reason, who, service) == ("succeeded", f"from {user}", "bob", name)
    assert address in {"127.0.0.1", "::1"}
    answer = await post(relay, token, "streams/free", streamId=stream_id)
    assert answer.json() == {"streamId": stream_id, "ownerId": None, "formerOwnerId": "bob"}
    async with login(relay, owner) as first:
        number = await connection_of(accounts, user)
        assert number
        assert (await post(relay, token, "users/end", userId=user)).json()["ended"] == 1
        await is_ended(first, REVOKED)
    other = f"user-{new_stream_id()}"
    async with login(relay, accounts.session(other)) as second:
        number = await connection_of(accounts, other)
        answer = await post(relay, token, "connections/end", connection=number)
        assert answer.json() == {"connection": number, "ended": 1}
        await is_ended(second, ENDED)
    async with login(relay, accounts.session(other)) as third:
        answer = await post(relay, token, "users/end", userId=f"{other}@example.org")
        assert (answer.json()["userId"], answer.json()["ended"]) == (other, 1)
        await is_ended(third, REVOKED)
    assert (await post(relay, token, "connections/end", connection=number)).status == 404


async def test_operators_know_people_by_name(relay: RelayProcess, accounts: Accounts) -> None:
    user = f"user-{new_stream_id()}"
    accounts.session(user)
    accounts.execute(
        'update "user" set name = %s where id = %s returning id', "<b>Ann\u202e</b>" * 40, user
    )
    token = accounts.service(operate=True)
    answer = await post(relay, token, "people", userIds=[user, "nobody", "a\0b", user])
    (person,) = answer.json()["people"]
    assert (person["userId"], person["email"]) == (user, f"{user}@example.org")
    assert person["name"] == ("<b>Ann\u202e</b>" * 40)[:200]
    assert user not in relay.log.rpartition("people")[2]
    assert (await post(relay, token, "people", userIds=[user] * 201)).status == 400


PATHS = ("people", "streams/transfer", "streams/free", "users/end", "connections/end")


@pytest.mark.parametrize("path", PATHS)
async def test_only_operators_may(relay: RelayProcess, accounts: Accounts, path: str) -> None:
    for token, status in (
        (accounts.session(), 403),
        (accounts.service("*"), 403),
        ("guessed", 401),
    ):
        assert (await post(relay, token, path)).status == status
    answer = await relay.get(
        "/operate/streams", headers={"Authorization": f"Bearer {accounts.session()}"}
    )
    assert answer.status == 403


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("streams/transfer", {"streamId": "nowhere", "userId": "ann"}, 404),
        ("streams/transfer", {"streamId": "a b", "userId": "ann"}, 400),
        ("streams/transfer", {"streamId": "nowhere", "userId": "nobody"}, 404),
        ("streams/transfer", {"streamId": "nowhere", "userId": "a\0b", "anyUser": True}, 404),
        ("streams/free", {"streamId": "nowhere"}, 404),
        ("streams/free", {"streamId": "nowhere", "also": 1}, 400),
        ("users/end", {"userId": "a\0b"}, 400),
        ("users/end", {"userId": ""}, 400),
        ("connections/end", {"connection": 2**53}, 404),
        ("connections/end", {"connection": "1"}, 400),
        ("connections/end", {"connection": -1}, 400),
    ],
)
async def test_what_is_wrong_is_said_over_http(
    relay: RelayProcess, accounts: Accounts, path: str, body: dict[str, Any], status: int
) -> None:
    accounts.session("ann")
    answer = await post(relay, accounts.service(operate=True), path, **body)
    assert answer.status == status
    assert answer.json()["error"]["message"]
    assert "regex" not in answer.json()["error"]["message"]
