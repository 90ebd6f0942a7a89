"""Frames that phones send in tests, and what viewers get of them."""

from __future__ import annotations

import base64
from typing import Any

import trio

from tests.unit.memory import Client

VIEW = {"type": "subscribe", "streamId": "front-door", "consumes": ["video-frame"]}


def frame(content: bytes, client: Client | None = None, **fields: Any) -> dict[str, Any]:
    """A frame in the encoding of its phone, JSON if it does not matter."""
    packs = client is not None and client.msgpack
    data = content if packs else base64.b64encode(content).decode()
    return {"type": "video-frame", "data": data, **fields}


async def messages_as_sent(client: Client, count: int) -> list[str | bytes]:
    """The payloads of the next frames, as they came."""
    found: list[str | bytes] = []
    with trio.fail_after(10):
        while len(found) < count:
            content: Any = None
            while True:
                event: Any = await client.event()
                data = event.data if isinstance(event.data, str) else bytes(event.data)
                content = data if content is None else content + data
                if event.message_finished:
                    break
            marker: Any = b"video-frame" if client.msgpack else '"video-frame"'
            if marker in content:
                found.append(content)
    return found


async def received(client: Client, seconds: float = 0.5) -> list[dict[str, Any]]:
    """All that a client gets in this time, and has got already."""
    messages = []
    with trio.move_on_after(seconds):
        while True:
            messages.append(await client.receive())
    return messages


def only(kind: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in messages if each["type"] == kind]


async def numbers(client: Client, seconds: float = 0.5) -> list[int]:
    """The `seq` of the frames that a client gets in this time."""
    return [each["seq"] for each in only("video-frame", await received(client, seconds))]
