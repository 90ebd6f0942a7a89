"""A client that does as it pleases: bytes on a socket."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field
from wsproto import ConnectionType, events
from wsproto.connection import Connection

from tests.integration.relay_process import PATIENCE, RelayProcess

CONTINUATION, TEXT, CLOSE, PING = 0, 1, 8, 9
REQUEST = (
    b"GET /streams/register HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, masked: bool = True, reserved: int = 0
) -> bytes:
    """A frame as clients send it, or as they never should."""
    mask = os.urandom(4) if masked else b""
    size = len(payload)
    if size < 126:
        length = struct.pack("!B", masked << 7 | size)
    elif size < 1 << 16:
        length = struct.pack("!BH", masked << 7 | 126, size)
    else:
        length = struct.pack("!BQ", masked << 7 | 127, size)
    if masked:
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes([final << 7 | reserved << 4 | opcode]) + length + mask + payload


def message(**fields: Any) -> bytes:
    return frame(TEXT, json.dumps(fields).encode())


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


@define(eq=False)
class RawClient:
    """One TCP connection."""

    stream: trio.SocketStream
    _protocol: Connection = field(factory=lambda: Connection(ConnectionType.CLIENT))

    async def send(self, *pieces: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(b"".join(pieces))

    async def read_to_end(self) -> bytes:
        """All that still comes; a reset is an end like any other."""
        received = b""
        with trio.fail_after(PATIENCE):
            try:
                while data := await self.stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                pass
        return received

    async def upgrade(self, request: bytes = REQUEST) -> None:
        """Shake hands; what follows is frames."""
        await self.send(request)
        head = b""
        with trio.fail_after(PATIENCE):
            while not head.endswith(b"\r\n\r\n"):
                head += await self.stream.receive_some(1)
        assert head.startswith(b"HTTP/1.1 101 "), head

    async def authenticate(self, token: str) -> None:
        await self.send(message(type="auth", token=token))
        assert (await self.receive())["code"] == "AUTHENTICATED"

    async def receive(self) -> dict[str, Any]:
        """The next message; pings and pongs are passed over."""
        while isinstance(event := await self._event(), events.Ping | events.Pong):
            pass
        assert isinstance(event, events.TextMessage), event
        found: dict[str, Any] = json.loads(event.data)
        return found

    async def hear_end(self) -> tuple[list[dict[str, Any]], int]:
        """What comes before the Close, and its code."""
        heard = []
        while not isinstance(event := await self._event(), events.CloseConnection):
            if isinstance(event, events.TextMessage):
                heard.append(json.loads(event.data))
        return heard, event.code

    def reset(self) -> None:
        """Vanish without a goodbye."""
        linger = struct.pack("ii", 1, 0)
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.stream.socket.close()

    async def _event(self) -> events.Event:
        with trio.fail_after(PATIENCE):
            while (event := next(self._protocol.events(), None)) is None:
                data = await self.stream.receive_some()
                self._protocol.receive_data(bytes(data) or None)
        return event


@asynccontextmanager
async def open_raw(
    relay: RelayProcess, *, upgrade: bool = False, receive_buffer: int | None = None
) -> AsyncIterator[RawClient]:
    """A connection, whose handshake is up to the test unless it asks for the `upgrade`.

    `receive_buffer` is set before connecting, so that the kernel takes no more than that.
    """
    with trio.socket.socket() as connecting:
        if receive_buffer is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await connecting.connect(("127.0.0.1", relay.port))
        client = RawClient(trio.SocketStream(connecting))
        if upgrade:
            await client.upgrade()
        yield client
