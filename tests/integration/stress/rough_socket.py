"""A WebSocket client with manners of any kind, which checks every byte that the server sends."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgspec
import trio
from attrs import define, field

from relay.transport.wire import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT
from tests.integration.relay_process import RelayProcess
from tests.integration.stress.frame_checks import Failed
from tests.unit.hostile import masked_frame

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what was not sent, and tells the peer with an RST."""


@define(eq=False)
class RoughSocket:
    """One connection, from the end of its handshake. Sending may be cut and slow."""

    stream: trio.abc.Stream
    tcp: trio.SocketStream
    binary: bool
    random: Random
    closed_with: int | None = None
    """The code of the server's Close."""
    lost: bool = False
    """Whether the connection broke, in place of an end."""
    rough: bool = False
    """Whether sends are cut into pieces now and then."""
    _buffer: bytearray = field(factory=bytearray)
    _fragments: list[tuple[int, bytes]] = field(factory=list)
    """Of a message whose end has not come, with their opcodes."""
    _sending: trio.Lock = field(factory=trio.Lock)
    _finished: bool = False
    _pings: int = 0
    _ponged: int = 0

    @property
    def in_a_frame(self) -> bool:
        """Whether only a part of a frame has come."""
        return bool(self._buffer)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send whole frames, unless the connection is lost or the last one was sent."""
        async with self._sending:
            while data and not (self.lost or self._finished):
                cut = len(data)
                if self.rough and self.random.random() < 0.1:
                    cut = self.random.randrange(1, len(data) + 1)
                try:
                    await self.stream.send_all(data[:cut])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.lost = True  # the kernel tells it once, so reading would not
                    return
                data = data[cut:]
                if data:
                    await trio.sleep(self.random.choice([0, 0, 0.005]))
            self._finished = self._finished or last

    async def say(self, **message: Any) -> None:
        await self.send(self.pack(**message))

    def pack(self, **message: Any) -> bytes:
        """A message on the wire, now and then in fragments with a ping between."""
        encode = msgspec.msgpack.encode if self.binary else msgspec.json.encode
        content, kind = encode(message), BINARY if self.binary else TEXT
        if not self.rough or self.random.random() < 0.8:
            return masked_frame(kind, content)
        cut = self.random.randrange(len(content) + 1)
        ping = self.ping() if self.random.random() < 0.3 else b""
        first = masked_frame(kind, content[:cut], final=False)
        return first + ping + masked_frame(CONTINUATION, content[cut:])

    def ping(self) -> bytes:
        """A ping whose pong is expected, unless a later one's comes first."""
        self._pings += 1
        return masked_frame(PING, struct.pack("!I", self._pings))

    async def receive(self, most: int) -> list[dict[str, Any]] | None:
        """Read once, check what came, and return the messages in it; None at the end."""
        try:
            data = await self.stream.receive_some(most)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.lost = True
            return None
        if not data:
            if self._buffer and not self.lost:
                raise Failed(f"the end came inside a frame, after {bytes(self._buffer[:20])!r}")
            return None
        self._buffer += data
        return [message for frame in self._frames() if (message := self._join(*frame)) is not None]

    def vanish(self) -> None:
        """Throw the connection away and let the peer know by an RST."""
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.tcp.socket.close()

    def end_sending(self) -> None:
        """A FIN, and nothing else."""
        self._finished = True
        self.tcp.socket.shutdown(socket.SHUT_WR)

    def _frames(self) -> Iterator[tuple[bool, int, bytes]]:
        """Whether it is the last fragment, its opcode, its payload."""
        buffer = self._buffer
        while len(buffer) >= 2:
            first, second = buffer[0], buffer[1]
            cut_control = first & 15 >= CLOSE and not first & FIN
            if first & 0x70 or cut_control or second & 0x80:
                raise Failed(f"no frame of a server begins like this: {bytes(buffer[:20])!r}")
            header = {126: 4, 127: 10}.get(second, 2)
            size = second if header == 2 else int.from_bytes(buffer[2:header], "big")
            if len(buffer) < header or len(buffer) < header + size:
                return
            payload = bytes(buffer[header : header + size])
            del buffer[: header + size]
            yield bool(first & FIN), first & 15, payload

    def _join(self, final: bool, opcode: int, payload: bytes) -> dict[str, Any] | None:
        """Put fragments together, and take what is whole."""
        if opcode >= CLOSE:
            return self._take(opcode, payload)
        if (opcode == CONTINUATION) != bool(self._fragments):
            raise Failed(f"a fragment out of place: {opcode}, {payload[:50]!r}")
        self._fragments.append((opcode, payload))
        if not final:
            return None
        fragments, self._fragments = self._fragments, []
        return self._take(fragments[0][0], b"".join(each for _, each in fragments))

    def _take(self, opcode: int, payload: bytes) -> dict[str, Any] | None:
        if self.closed_with is not None:
            raise Failed(f"something follows the Close: {opcode}, {payload[:50]!r}")
        if opcode == CLOSE:
            self.closed_with = int.from_bytes(payload[:2], "big") if payload else 1005
        elif opcode == PONG:
            (number,) = struct.unpack("!I", payload)
            if not self._ponged < number <= self._pings:
                raise Failed(f"pong {number} came after {self._ponged} of {self._pings}")
            self._ponged = number
        elif opcode == (BINARY if self.binary else TEXT):
            decode = msgspec.msgpack.decode if self.binary else msgspec.json.decode
            try:
                message: dict[str, Any] = decode(payload)
            except msgspec.DecodeError as problem:
                raise Failed(f"an unreadable message: {payload[:50]!r}") from problem
            return message
        elif opcode != PING:
            raise Failed(f"a frame with opcode {opcode}: {payload[:50]!r}")
        return None


@asynccontextmanager
async def open_rough(
    relay: RelayProcess, random: Random, *, binary: bool, receive_buffer: int | None = None
) -> AsyncIterator[RoughSocket]:
    """A WebSocket, which is closed at the end if it still is open.

    `receive_buffer` is set before connecting, so that the kernel takes no more than that.
    """
    with trio.socket.socket() as connecting:
        if receive_buffer is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await connecting.connect(("127.0.0.1", relay.port))
        tcp = trio.SocketStream(connecting)
        stream: trio.abc.Stream = tcp
        if relay.url.startswith("https"):
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # we know whom we started
            stream = trio.SSLStream(tcp, context, https_compatible=True)
        subprotocol = "relay.v1.msgpack" if binary else "relay.v1.json"
        key = base64.b64encode(os.urandom(16)).decode()
        await stream.send_all(
            "GET /streams/subscribe HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = await stream.receive_some(1)
            if not more:
                raise Failed(f"the handshake ended with {head!r}")
            head += more
        if not head.startswith(b"HTTP/1.1 101"):
            raise Failed(f"the handshake was answered with {head!r}")
        yield RoughSocket(stream, tcp, binary, random)
