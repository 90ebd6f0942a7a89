"""The two paths are two names for one thing."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
import trio
from wsproto import events

from relay.connection.admission import PATHS
from relay.protocol.messages import ClientMessage
from tests.unit.memory import ANN, Client, MemoryRelay

pytestmark = pytest.mark.mock_clock

REQUESTS: dict[str, dict[str, Any]] = {
    "auth": {"token": ANN},
    "register": {"streamId": "s"},
    "subscribe": {"streamId": "s", "consumes": ["video-frame", "alert"]},
    "video-frame": {"data": "AAAA"},
    "ack": {"streamId": "s", "seq": 1},
    "alert": {"streamId": "s", "severity": "low", "message": "m"},
    "alerts-since": {"streamId": "s"},
    "streams": {},
    "unsubscribe": {"streamId": "s"},
}


async def played(client: Client, target: str) -> list[dict[str, Any]]:
    """All that comes when each type of message is sent once."""
    assert isinstance(await client.upgrade(target), events.AcceptConnection)
    heard: list[dict[str, Any]] = []
    for kind, fields in REQUESTS.items():
        stream = {"streamId": target.rpartition("/")[2]} if "streamId" in fields else {}
        await client.send({"type": kind, **fields, **stream, "id": kind})
        if kind not in ("video-frame", "ack"):
            while not heard or heard[-1].get("id") != kind:
                heard.append(await client.receive())
    return heard


async def test_every_type_of_message_is_taken_on_both_paths_alike(relay: MemoryRelay) -> None:
    types = {msgspec.inspect.type_info(kind).tag for kind in get_args(ClientMessage)}  # type: ignore[attr-defined]
    assert types == set(REQUESTS)
    stories = []
    for target in PATHS:
        heard = await played(relay.connect(), target)
        assert not [message for message in heard if message["type"] == "error"]
        stories.append([(each["type"], each.get("code"), each.get("status")) for each in heard])
        relay.connections[-1].restart(0)
        await trio.sleep(10)  # the stream ends, too
    assert stories[0] == stories[1]
    assert ("video-frame", None, None) in stories[0]
