"""Measures a relay on this machine: many connections that authenticate at once, and idle memory.

    ./scripts/relay --version && .venv/bin/python scripts/figures.py

It starts a relay with an embedded database in a folder of its own, talks to it over loopback, and
stops it. The client is as plain as can be, so that its own work delays the answers little; what it
still takes is part of the times.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

RELAY = [sys.executable, "-m", "relay"]
SPARE_FILES = 200


@define(eq=False)
class Peer:
    """A connection that authenticates and then only waits."""

    stream: trio.SocketStream
    buffer: bytearray = field(factory=bytearray)

    async def upgrade(self, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        await self.stream.send_all(
            f"GET /streams/subscribe HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await self._receive_until(b"\r\n\r\n")

    async def authenticate(self, token: str) -> None:
        message = json.dumps({"type": "auth", "token": token}).encode()
        # Masked with zeros, which leaves the text as it is.
        await self.stream.send_all(bytes((0x81, 0x80 | len(message), 0, 0, 0, 0)) + message)
        await self._receive_until(b"AUTHENTICATED")

    async def _receive_until(self, mark: bytes) -> None:
        while mark not in self.buffer:
            received = await self.stream.receive_some()
            if not received:
                raise EOFError(bytes(self.buffer[-200:]))
            self.buffer += received
        self.buffer.clear()


@frozen
class Target:
    """A relay process and where it listens."""

    pid: int
    host: str
    port: int

    def stats(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/stats") as answer:
            totals: dict[str, int] = json.load(answer)
            return totals

    def resident(self) -> int:
        """Bytes of memory."""
        command = ["ps", "-o", "rss=", "-p", str(self.pid)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(output) * 1024


@contextmanager
def running_relay(data_dir: Path) -> Iterator[Target]:
    """A relay that is stopped at the end."""
    command = [*RELAY, "serve", "--bind", "127.0.0.1:0", "--data-dir", str(data_dir)]
    command += ["--profile", "load", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            address = re.search(r"http://(.+):(\d+)", ready)
            if address is None:
                raise SystemExit(f"relay did not start: {ready!r}")
            yield Target(process.pid, address[1], int(address[2]))
        finally:
            process.send_signal(signal.SIGTERM)


async def measure(relay: Target, token: str, storm: int, idle: int) -> None:
    peers: list[Peer] = []
    before = relay.resident()
    asked = relay.stats()

    async def join(number: int) -> None:
        """Connect so many, 50 at a time, and upgrade them."""

        async def one() -> None:
            async with places:
                peer = Peer(await trio.open_tcp_stream(relay.host, relay.port))
                await peer.upgrade(relay.host)
                peers.append(peer)

        places = trio.CapacityLimiter(50)
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                nursery.start_soon(one)

    await join(storm)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(peer.authenticate, token)
    seconds = trio.current_time() - start
    after = relay.stats()
    queries = after["verification_queries"] - asked["verification_queries"]
    print(f"{storm} connections authenticate at once: {seconds:.2f} s, {queries} queries")

    while len(peers) < idle:
        known = len(peers)
        await join(min(500, idle - known))
        async with trio.open_nursery() as nursery:
            for peer in peers[known:]:
                nursery.start_soon(peer.authenticate, token)
    await trio.sleep(1)
    each = (relay.resident() - before) / len(peers) / 1024
    print(f"{len(peers)} idle authenticated connections: {each:.1f} KiB of memory each")
    for peer in peers:
        await peer.stream.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storm", type=int, default=1000, help="that authenticate at once")
    parser.add_argument("--idle", type=int, default=2000, help="connections that idle")
    options = parser.parse_args()
    most = max(options.storm, options.idle) + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(most, 1024), hard), hard))
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        data_dir = Path(folder) / "data"
        with running_relay(data_dir) as relay:
            command = [*RELAY, "token", "session", "--user", "figures@example.com"]
            command += ["--data-dir", str(data_dir)]
            token = subprocess.run(command, capture_output=True, text=True, check=True)
            trio.run(measure, relay, token.stdout.strip(), options.storm, options.idle)


if __name__ == "__main__":
    main()
