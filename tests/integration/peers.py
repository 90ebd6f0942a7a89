"""Clients that nobody here wrote: those of the `websockets` library, in the hands of a test."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import msgpack
import trio
from attrs import define, field
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

from tests.integration.relay_process import PATIENCE, RelayProcess

LEAVING = 3.0
"""Seconds in which a client says goodbye."""

Message = dict[str, Any]
Close = tuple[int | None, str | None]


@define(eq=False)
class Peer:
    """One WebSocket."""

    socket: ClientConnection
    passed_over: list[Message] = field(factory=list)
    """By `ask`, and not received since."""
    _requests: int = 0

    @property
    def speaks_msgpack(self) -> bool:
        return self.socket.subprotocol is not None

    async def send(self, message: Message | str | bytes) -> None:
        if isinstance(message, dict):
            message = msgpack.packb(message) if self.speaks_msgpack else json.dumps(message)
        with trio.fail_after(PATIENCE):
            await self.socket.send(message)

    async def receive(self) -> Message:
        """The next message; `ConnectionClosed` when there is none to come."""
        return self.passed_over.pop(0) if self.passed_over else await self._read()

    async def receive_type(self, kind: str) -> Message:
        """The next message of a type; others are passed over."""
        while (message := await self.receive())["type"] != kind:
            pass
        return message

    async def ask(self, message: Message) -> Message:
        """Send a request; returns the `success` or `error` that answers it."""
        self._requests += 1
        await self.send({**message, "id": self._requests})
        while (message := await self._read()).get("id") != self._requests:
            self.passed_over.append(message)
        return message

    async def hear_end(self) -> tuple[list[Message], Close]:
        """What comes before the Close, and the Close."""
        heard = []
        try:
            while True:
                heard.append(await self.receive())
        except ConnectionClosed:
            return heard, (self.socket.close_code, self.socket.close_reason)

    async def authenticate(self, token: str) -> Message:
        return await self.ask({"type": "auth", "token": token})

    async def register(self, stream_id: str) -> None:
        """Produce a stream, and read what comes of that."""
        reply = await self.ask({"type": "register", "streamId": stream_id})
        assert reply["code"] == "REGISTERED", reply
        await self.receive_type("status")

    async def subscribe(self, stream_id: str, **terms: object) -> None:
        """Watch a stream, and read what comes of that."""
        consumes = ["video-frame", "alert"]
        reply = await self.ask(
            {"type": "subscribe", "streamId": stream_id, "consumes": consumes, **terms}
        )
        assert reply["code"] == "SUBSCRIBED", reply
        await self.receive_type("status")

    async def send_frame(self, data: bytes, **fields: object) -> None:
        content = data if self.speaks_msgpack else base64.b64encode(data).decode()
        await self.send({"type": "video-frame", "data": content, **fields})

    async def _read(self) -> Message:
        with trio.fail_after(PATIENCE):
            received = await self.socket.recv()
        assert isinstance(received, bytes) == self.speaks_msgpack
        read = msgpack.unpackb if self.speaks_msgpack else json.loads
        message: Message = read(received)
        return message


@asynccontextmanager
async def open_peer(
    relay: RelayProcess, path: str = "/streams/register", *, msgpack: bool = False, **options: Any
) -> AsyncIterator[Peer]:
    """A client with an open WebSocket."""
    url = relay.url.replace("http", "ws", 1) + path
    plain = {"proxy": None, "ping_interval": None, "max_size": None, "open_timeout": PATIENCE}
    if msgpack:
        options["subprotocols"] = ["relay.v1.msgpack"]
    async with connect(url, **{**plain, **options}) as socket:
        try:
            yield Peer(socket)
        finally:
            # It would wait without end behind messages that the test has not read.
            socket.nursery.cancel_scope.deadline = trio.current_time() + LEAVING


@asynccontextmanager
async def login(relay: RelayProcess, token: str, **options: Any) -> AsyncIterator[Peer]:
    """A client that is authenticated."""
    async with open_peer(relay, **options) as peer:
        reply = await peer.authenticate(token)
        assert reply["code"] == "AUTHENTICATED", reply
        yield peer


def new_stream_id() -> str:
    """Tests share a relay, but no stream."""
    return f"stream-{uuid4().hex}"
