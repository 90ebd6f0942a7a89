"""The last seconds of a connection, which no peer may draw out."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from relay.server import MIN_RETURN_SPREAD, RETURN_SPREAD_PER_CONNECTION, Server
from tests.unit.memory import MemoryRelay, open_relay

pytestmark = pytest.mark.mock_clock


async def test_a_peer_that_never_answers_our_close_is_cut_off(relay: MemoryRelay) -> None:
    client = await relay.login()
    relay.connections[0].restart(0)
    await trio.testing.wait_all_tasks_blocked()
    assert not client.link.incoming.ended
    started = trio.current_time()
    await client.has_ended()
    assert trio.current_time() - started == pytest.approx(1)


async def test_what_a_peer_goes_on_sending_is_read_for_a_second(relay: MemoryRelay) -> None:
    client = await relay.login()
    relay.connections[0].restart(0)
    started = trio.current_time()
    while not client.link.incoming.ended:
        await client.send_bytes(b"x" * 1000)
        await trio.sleep(0.05)
    assert trio.current_time() - started == pytest.approx(1, abs=0.1)


async def test_a_peer_that_takes_our_goodbye_byte_by_byte_has_two_seconds(
    relay: MemoryRelay,
) -> None:
    client = await relay.login(capacity=1)
    relay.connections[0].restart(0)
    started = trio.current_time()
    while not client.link.incoming.ended:
        client.link.incoming.content.clear()
        client.link.incoming.changed.unpark_all()
        await trio.sleep(0.1)
    assert trio.current_time() - started == pytest.approx(2, abs=0.15)


async def test_a_peer_that_takes_no_byte_is_cut_off(relay: MemoryRelay) -> None:
    client = await relay.login(capacity=400)
    for _ in range(10):
        await client.send({"type": "unsubscribe", "streamId": "s"})
    relay.connections[0].restart(0)
    await trio.sleep(3)
    assert client.link.incoming.broken


async def test_a_relay_that_is_stopped_at_once_waits_for_no_goodbye() -> None:
    async with open_relay() as relay:
        client = await relay.login()
        relay.connections[0].restart(0)
        await trio.testing.wait_all_tasks_blocked()
        stopped = trio.current_time()
    assert trio.current_time() == stopped
    assert client.link.incoming.ended


async def test_clients_are_asked_to_come_back_at_different_times(relay: MemoryRelay) -> None:
    clients = [await relay.login() for _ in range(40)]
    server = Server(
        cast("Any", None), connections={each.number: each for each in relay.connections}
    )
    server.drain(10)
    times = [(await client.receive_type("notice"))["retryAfter"] for client in clients]
    assert len(set(times)) > 10
    assert all(
        0 <= each < MIN_RETURN_SPREAD + RETURN_SPREAD_PER_CONNECTION * len(clients)
        for each in times
    )
    assert max(times) > MIN_RETURN_SPREAD / 2
