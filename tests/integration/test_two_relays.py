"""Two relays on one database: what one of them, or SQL, accepts, both deliver."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

NOWHERE = "postgresql://nobody@127.0.0.1:9/none"
ROUNDS = 8


@pytest.fixture(scope="module")
def other(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(database_url=database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def deaf(database_url: str) -> Iterator[RelayProcess]:
    """One that cannot listen to the database."""
    with start_relay("--listen-url", NOWHERE, database_url=database_url) as relay:
        yield relay


def alert(stream_id: str, text: str) -> Message:
    return {"type": "alert", "streamId": stream_id, "severity": "high", "message": text}


async def watch(peer: Peer, stream_id: str) -> None:
    reply = await peer.ask({"type": "subscribe", "streamId": stream_id, "consumes": ["alert"]})
    assert reply["code"] == "SUBSCRIBED", reply


async def hear(peer: Peer) -> str:
    return str((await peer.receive_type("alert"))["message"])


async def test_what_either_accepts_both_deliver_at_once(
    relay: RelayProcess, other: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    service = accounts.service(stream_id)
    async with (
        login(relay, token) as phone,
        login(other, token) as viewer,
        login(relay, service) as here,
        login(other, service) as there,
    ):
        await phone.register(stream_id)
        await watch(viewer, stream_id)
        start = trio.current_time()
        for number in range(ROUNDS):
            text = str(number)
            await (here, there)[number % 2].ask(alert(stream_id, text))
            assert [await hear(phone), await hear(viewer)] == [text, text]
        # A look once a second would take a second for each.
        assert trio.current_time() - start < ROUNDS / 2


async def test_what_sql_raises_both_deliver_at_once(
    relay: RelayProcess, other: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    async with login(relay, token) as phone, login(other, token) as viewer:
        await phone.register(stream_id)
        await watch(viewer, stream_id)
        start = trio.current_time()
        with psycopg.connect(accounts.url, autocommit=True) as backend:
            for number in range(ROUNDS):
                backend.execute("select relay.raise_alert(%s, %s)", [stream_id, str(number)])
                assert [await hear(phone), await hear(viewer)] == [str(number)] * 2
        assert trio.current_time() - start < ROUNDS / 2


async def test_one_that_cannot_listen_delivers_a_second_late(
    relay: RelayProcess, deaf: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    service = accounts.service(stream_id)
    async with (
        login(relay, token) as phone,
        login(deaf, token) as viewer,
        login(relay, service) as here,
        login(deaf, service) as there,
    ):
        await phone.register(stream_id)
        await watch(viewer, stream_id)
        for sender, text in ((here, "a"), (there, "b"), (here, "c")):
            await sender.ask(alert(stream_id, text))
            assert [await hear(phone), await hear(viewer)] == [text, text]
        accounts.execute("select relay.raise_alert(%s, 'd')", stream_id)
        assert [await hear(phone), await hear(viewer)] == ["d", "d"]


async def test_a_relay_whose_listening_connection_is_cut_goes_on_delivering(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    async with login(relay, token) as phone:
        await phone.register(stream_id)
        for text in ("before", "after"):
            accounts.execute("select relay.raise_alert(%s, %s)", stream_id, text)
            assert await hear(phone) == text
            accounts.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where query like 'listen %relay_alerts%' and datname = current_database()"
            )
