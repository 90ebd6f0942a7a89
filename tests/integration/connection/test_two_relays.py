"""Two relays on one database: what one of them, or SQL, accepts, both deliver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from attrs import frozen

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, within

NOWHERE = "postgresql://nobody@127.0.0.1:9/none"
ROUNDS = 8


@pytest.fixture(scope="module")
def other(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(database_url=database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def not_listening(database_url: str) -> Iterator[RelayProcess]:
    """One that cannot listen to the database."""
    with start_relay("--listen-url", NOWHERE, database_url=database_url) as relay:
        yield relay


def alert(stream_id: str, text: str) -> Message:
    return {"type": "alert", "streamId": stream_id, "severity": "high", "message": text}


async def watch(peer: Peer, stream_id: str) -> None:
    reply = await peer.ask({"type": "subscribe", "streamId": stream_id, "consumes": ["alert"]})
    assert reply["code"] == "SUBSCRIBED", reply


async def next_alert(peer: Peer) -> str:
    return str((await peer.receive_type("alert"))["message"])


@frozen
class Scene:
    """A phone on one relay, its viewer on another, and a service on each."""

    stream_id: str
    phone: Peer
    viewer: Peer
    services: tuple[Peer, Peer]

    async def alert(self, number: int, text: str) -> None:
        """Raise an alert by way of one of the relays."""
        await self.services[number].ask(alert(self.stream_id, text))

    async def both_receive(self, text: str) -> None:
        assert [await next_alert(self.phone), await next_alert(self.viewer)] == [text, text]


@asynccontextmanager
async def scene(
    relay: RelayProcess, other: RelayProcess, accounts: Accounts
) -> AsyncIterator[Scene]:
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
        yield Scene(stream_id, phone, viewer, (here, there))


async def test_what_either_accepts_both_deliver_at_once(
    relay: RelayProcess, other: RelayProcess, accounts: Accounts
) -> None:
    # A look once a second would take a second for each round.
    async with scene(relay, other, accounts) as made, within(ROUNDS / 2):
        for number in range(ROUNDS):
            await made.alert(number % 2, str(number))
            await made.both_receive(str(number))


async def test_what_sql_raises_both_deliver_at_once(
    relay: RelayProcess, other: RelayProcess, accounts: Accounts
) -> None:
    async with scene(relay, other, accounts) as made:
        with psycopg.connect(accounts.url, autocommit=True) as backend:
            async with within(ROUNDS / 2):
                for number in range(ROUNDS):
                    values = [made.stream_id, str(number)]
                    backend.execute("select relay.raise_alert(%s, %s)", values)
                    await made.both_receive(str(number))


async def test_one_that_cannot_listen_delivers_a_second_late(
    relay: RelayProcess, not_listening: RelayProcess, accounts: Accounts
) -> None:
    async with scene(relay, not_listening, accounts) as made:
        for number, text in ((0, "a"), (1, "b"), (0, "c")):
            await made.alert(number, text)
            await made.both_receive(text)
        accounts.execute("select relay.raise_alert(%s, 'd')", made.stream_id)
        await made.both_receive("d")


async def test_a_relay_whose_listening_connection_is_cut_goes_on_delivering(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    async with login(relay, token) as phone:
        await phone.register(stream_id)
        for text in ("before", "after"):
            accounts.execute("select relay.raise_alert(%s, %s)", stream_id, text)
            assert await next_alert(phone) == text
            accounts.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where query like 'listen %relay_alerts%' and datname = current_database()"
            )
