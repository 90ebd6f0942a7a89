"""The other end of a client, played by a test."""

from __future__ import annotations

import base64
import json
from typing import Any

import trio_websocket
from attrs import define


@define(eq=False)
class Server:
    """The other side of a client, played by a test."""

    socket: trio_websocket.WebSocketConnection

    async def hear(self) -> dict[str, Any]:
        message = json.loads(await self.socket.get_message())
        assert isinstance(message, dict)
        return message

    async def say(self, kind: str, **fields: object) -> None:
        await self.socket.send_message(json.dumps({"type": kind, **fields}))

    async def answer(self, **fields: object) -> dict[str, Any]:
        """Accept the next request."""
        request = await self.hear()
        await self.say("success", id=request["id"], message="", timestamp=1, **fields)
        return request

    async def frame(
        self, seq: int, stream: str = "door", data: bytes = b"picture", **more: object
    ) -> None:
        encoded = base64.b64encode(data).decode()
        times = {"timestamp": 1.5, "receivedAt": 2}
        await self.say("video-frame", streamId=stream, seq=seq, data=encoded, **times, **more)

    async def alert(self, number: int, stream: str = "door") -> None:
        await self.say(
            "alert", alertId=number, streamId=stream, severity="low", message="m", timestamp=3
        )
