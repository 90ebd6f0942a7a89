"""A server whose messages a test writes out."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
from attrs import define

from relay.client.websocket import WebSocket, open_websocket
from relay.concurrency.background import open_background


@define(eq=False)
class ScriptedServer:
    """The server of one WebSocket, played by a test."""

    socket: trio_websocket.WebSocketConnection

    async def receive(self) -> dict[str, Any]:
        message = json.loads(await self.socket.get_message())
        assert isinstance(message, dict)
        return message

    async def send(self, kind: str, **fields: object) -> None:
        await self.socket.send_message(json.dumps({"type": kind, **fields}))

    async def answer(self, **fields: object) -> dict[str, Any]:
        """Accept the next request."""
        request = await self.receive()
        await self.send("success", id=request["id"], message="", timestamp=1, **fields)
        return request

    async def refuse(self, code: str, message: str = "no", **fields: object) -> dict[str, Any]:
        """Answer the next request with an error; returns the request."""
        request = await self.receive()
        await self.send("error", id=request["id"], code=code, message=message, **fields)
        return request

    async def lose(self) -> None:
        """End the connection in a way after which a client comes back."""
        await self.socket.aclose(4003, "idle")

    async def close_code(self) -> int:
        """The code of the Close that comes next."""
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await self.receive()
        assert caught.value.reason is not None
        return caught.value.reason.code

    async def frame(
        self, seq: int, stream: str = "door", data: bytes = b"picture", **more: object
    ) -> None:
        encoded = base64.b64encode(data).decode()
        times = {"timestamp": 1.5, "receivedAt": 2}
        await self.send("video-frame", streamId=stream, seq=seq, data=encoded, **times, **more)

    async def alert(self, number: int, stream: str = "door") -> None:
        await self.send(
            "alert", alertId=number, streamId=stream, severity="low", message="m", timestamp=3
        )


@asynccontextmanager
async def open_scripted_server() -> AsyncIterator[tuple[WebSocket, ScriptedServer]]:
    """A client's WebSocket, and the server at the other end of a stream in memory."""
    client_end, server_end = trio.testing.memory_stream_pair()
    sending, receiving = trio.open_memory_channel[ScriptedServer](1)

    async def accept(nursery: trio.Nursery) -> None:
        request = await trio_websocket.wrap_server_stream(
            nursery, server_end, message_queue_size=100
        )
        await sending.send(ScriptedServer(await request.accept()))

    async with open_background() as nursery:
        nursery.start_soon(accept, nursery)
        async with open_websocket(client_end, "relay", "/streams/subscribe") as socket:
            yield socket, await receiving.receive()
