"""A relay for a measurement, and clients as plain as can be; for scripts/figures.py."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
from attrs import define, field, frozen

from relay.transport import wire

RELAY = [sys.executable, "-m", "relay"]
CLOSE = 0x88
AT_ONCE = 50
"""Connections that are opened at a time."""


@define(eq=False)
class Peer:
    """A client that reads and counts what comes, frame by frame."""

    stream: trio.abc.Stream
    host: str
    buffer: bytearray = field(factory=bytearray)
    passed_over: bytes = b""
    """The last message that was not waited for: it may say why the connection ends."""

    async def upgrade(self, subprotocol: str = "relay.v1.json", query: str = "") -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        await self.stream.send_all(
            f"GET /streams/subscribe{query} HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self._receive()
        del self.buffer[: end + 4]

    async def say(self, *, binary: bool = False, **message: object) -> int:
        """Send a message as JSON or MessagePack; returns its bytes on the wire."""
        encode = msgspec.msgpack.encode if binary else msgspec.json.encode
        return await self.send(encode(message), binary=binary)

    async def send(self, message: bytes, *, binary: bool = False) -> int:
        """Send a message; returns its bytes on the wire."""
        header = bytearray(wire.frame(wire.BINARY if binary else wire.TEXT, message))
        del header[-len(message) :]
        header[1] |= wire.MASKED
        # Masked with zeros, which leaves the message as it is.
        frame = bytes((*header, 0, 0, 0, 0)) + message
        await self.stream.send_all(frame)
        return len(frame)

    async def receive_until(self, mark: bytes) -> bytes:
        """Read on until a message has this in it; returns the frame of that one."""
        while True:
            size = 2
            while len(self.buffer) < size:
                await self._receive()
            header = {126: 4, 127: 10}.get(self.buffer[1], 2)
            while len(self.buffer) < header:
                await self._receive()
            length = int.from_bytes(self.buffer[2:header]) if header > 2 else self.buffer[1]
            size = header + length
            while len(self.buffer) < size:
                await self._receive()
            message = self.buffer[:size]
            del self.buffer[:size]
            if mark in message:
                return bytes(message)
            if message[0] != CLOSE:
                self.passed_over = bytes(message[:300])

    async def authenticate(self, token: str) -> None:
        await self.send(json.dumps({"type": "auth", "token": token}).encode())
        await self.receive_until(b"AUTHENTICATED")

    async def _receive(self) -> None:
        received = await self.stream.receive_some()
        if not received:
            raise EOFError(self.passed_over, bytes(self.buffer[-200:]))
        self.buffer += received


@frozen
class Target:
    """A relay process, where it listens, and a token for it."""

    pid: int
    host: str
    port: int
    token: str = field(repr=False)
    data_dir: Path | None = None
    """Of its embedded database; None for who knows only its address."""

    async def connect(self, receive_buffer: int | None = None) -> Peer:
        """Connect; the kernel takes no more than the `receive_buffer` for who does not read."""
        connecting = trio.socket.socket()
        if receive_buffer is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await connecting.connect((self.host, self.port))
        return Peer(trio.SocketStream(connecting), self.host)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/stats") as answer:
            totals: dict[str, Any] = json.load(answer)
            return totals

    def resident(self) -> int:
        """Bytes of memory."""
        command = ["ps", "-o", "rss=", "-p", str(self.pid)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(output) * 1024


@contextmanager
def running_relay(
    *flags: str, profile: str = "load", prefix: Sequence[str] = (), bind: str = "127.0.0.1:0"
) -> Iterator[Target]:
    """A relay with an embedded database in a folder of its own; both are gone at the end.

    `prefix` is a command that runs another one in its own process.
    """
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        data = ["--data-dir", str(Path(folder, "data"))]
        command = [*prefix, *RELAY, "serve", "--bind", bind, *data, *flags]
        command += ["--profile", profile, "--log-level", "error"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                ready = process.stdout.readline()
                address = re.search(r"https?://(.+):(\d+)", ready)
                if address is None:
                    raise SystemExit(f"relay did not start: {ready!r}")
                token = subprocess.run(
                    [*prefix, *RELAY, "token", "session", "--user", "figures@example.com", *data],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.strip()
                yield Target(process.pid, address[1], int(address[2]), token, Path(folder, "data"))
            finally:
                process.send_signal(signal.SIGTERM)


async def together(number: int, work: Callable[[], Awaitable[None]]) -> None:
    """Do something so many times, `AT_ONCE` at a time."""

    async def one() -> None:
        async with places:
            await work()

    places = trio.CapacityLimiter(AT_ONCE)
    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
