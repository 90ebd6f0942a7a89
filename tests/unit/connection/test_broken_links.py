"""Peers that vanish are noticed by whoever reads or writes first, not by the next ping."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from wsproto import events

from relay.protocol.endings import Ending
from tests.unit.memory import MemoryRelay

pytestmark = pytest.mark.mock_clock

FRAME = {"type": "video-frame", "data": "AAAA"}


async def test_a_frame_that_cannot_be_written_ends_the_connection(relay: MemoryRelay) -> None:
    phone = await relay.phone()
    viewer = await relay.viewer(capacity=300)
    viewer.link.incoming.content += bytes(300)
    await phone.send(FRAME)  # waits for the viewer to read
    await trio.testing.wait_all_tasks_blocked()
    viewer.link.incoming.end(broken=True)
    await trio.sleep(1)
    assert relay.connections[1].peer.ending is Ending.CLIENT_GONE


async def test_a_pong_that_cannot_be_written_ends_the_connection(relay: MemoryRelay) -> None:
    client = await relay.login()
    client.link.incoming.end(broken=True)
    await client.send_bytes(client.protocol.send(events.Ping()))
    await trio.sleep(1)
    assert relay.connections[0].peer.ending is Ending.CLIENT_GONE
