"""The last seconds of a connection, which no peer may draw out."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.unit.memory import Relay, open_relay

pytestmark = pytest.mark.mock_clock


async def test_a_peer_that_never_answers_our_close_is_cut_off(relay: Relay) -> None:
    client = await relay.login()
    relay.connections[0].restart(0)
    await trio.testing.wait_all_tasks_blocked()
    assert not client.link.incoming.ended
    await trio.sleep(3)
    assert client.link.incoming.ended


async def test_a_peer_that_takes_no_byte_is_cut_off(relay: Relay) -> None:
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
