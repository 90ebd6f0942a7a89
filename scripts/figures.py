"""Measures a relay on this machine. What it starts, it stops; all traffic stays on loopback.

    ./scripts/relay --version && .venv/bin/python scripts/figures.py [FIGURE...]

`connections`: many that authenticate at once, and the memory of idle ones. `video`: the bytes that
the demo's video takes on the wire in either encoding. `tls`: handshakes per second. `logout`: how
long a connection outlives its session. The clients are as plain as can be, so that their own work
delays the answers little; what it still takes is part of the times.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import msgspec
import trio
from attrs import define, field, frozen
from logout import logout

from relay.demo.video import default_video, play
from relay.transport import wire

RELAY = [sys.executable, "-m", "relay"]
SPARE_FILES = 200
AT_ONCE = 50
"""Connections that are opened at a time."""


@define(eq=False)
class Peer:
    """A client that reads and counts what comes, frame by frame."""

    stream: trio.abc.Stream
    host: str
    buffer: bytearray = field(factory=bytearray)

    async def upgrade(self, subprotocol: str = "relay.v1.json") -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        await self.stream.send_all(
            f"GET /streams/subscribe HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self._receive()
        del self.buffer[: end + 4]

    async def send(self, message: bytes, *, binary: bool = False) -> int:
        """Send a message; returns its bytes on the wire."""
        header = bytearray(wire.frame(wire.BINARY if binary else wire.TEXT, message))
        del header[-len(message) :]
        header[1] |= wire.MASKED
        # Masked with zeros, which leaves the message as it is.
        frame = bytes((*header, 0, 0, 0, 0)) + message
        await self.stream.send_all(frame)
        return len(frame)

    async def receive_until(self, mark: bytes) -> int:
        """Read on until a message has this in it; returns that one's bytes on the wire."""
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
                return size

    async def authenticate(self, token: str) -> None:
        await self.send(json.dumps({"type": "auth", "token": token}).encode())
        await self.receive_until(b"AUTHENTICATED")

    async def _receive(self) -> None:
        received = await self.stream.receive_some()
        if not received:
            raise EOFError(bytes(self.buffer[-200:]))
        self.buffer += received


@frozen
class Target:
    """A relay process, where it listens, and a token for it."""

    pid: int
    host: str
    port: int
    token: str = field(repr=False)
    data_dir: Path

    async def connect(self) -> Peer:
        return Peer(await trio.open_tcp_stream(self.host, self.port), self.host)

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
def running_relay(*flags: str) -> Iterator[Target]:
    """A relay with an embedded database in a folder of its own; both are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        data = ["--data-dir", str(Path(folder, "data"))]
        command = [*RELAY, "serve", "--bind", "127.0.0.1:0", *data, *flags]
        command += ["--profile", "load", "--log-level", "warning"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                ready = process.stdout.readline()
                address = re.search(r"https?://(.+):(\d+)", ready)
                if address is None:
                    raise SystemExit(f"relay did not start: {ready!r}")
                token = subprocess.run(
                    [*RELAY, "token", "session", "--user", "figures@example.com", *data],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.strip()
                yield Target(process.pid, address[1], int(address[2]), token, Path(data[1]))
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


async def connections(relay: Target, storm: int, idle: int) -> None:
    peers: list[Peer] = []
    before = relay.resident()
    asked = relay.stats()

    async def join() -> None:
        peer = await relay.connect()
        await peer.upgrade()
        peers.append(peer)

    await together(storm, join)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(peer.authenticate, relay.token)
    seconds = trio.current_time() - start
    queries = relay.stats()["verification_queries"] - asked["verification_queries"]
    print(f"{storm} connections authenticate at once: {seconds:.2f} s, {queries} queries")

    while len(peers) < idle:
        known = len(peers)
        await together(min(500, idle - known), join)
        async with trio.open_nursery() as nursery:
            for peer in peers[known:]:
                nursery.start_soon(peer.authenticate, relay.token)
    await trio.sleep(1)
    each = (relay.resident() - before) / len(peers) / 1024
    print(f"{len(peers)} idle authenticated connections: {each:.1f} KiB of memory each")
    for peer in peers:
        await peer.stream.aclose()


async def video(relay: Target, pictures: int) -> None:
    with closing(play(default_video())) as playing:
        jpegs = [picture.jpeg for picture in islice(playing, pictures)]
    viewers = {name: await relay.connect() for name in ("relay.v1.json", "relay.v1.msgpack")}
    sent = dict.fromkeys(viewers, 0)
    received = dict.fromkeys(viewers, 0)
    for name, viewer in viewers.items():
        await viewer.upgrade(name)
        await _say(viewer, name, type="auth", token=relay.token)
        await _say(viewer, name, type="subscribe", streamId="video", consumes=["video-frame"])
        await viewer.receive_until(b"SUBSCRIBED")
    for name in viewers:
        phone = await relay.connect()
        await phone.upgrade(name)
        await _say(phone, name, type="auth", token=relay.token)
        await _say(phone, name, type="register", streamId="video")
        await phone.receive_until(b"REGISTERED")
        for jpeg in jpegs:
            sent[name] += await _say(phone, name, type="video-frame", data=jpeg, timestamp=1)
            for encoding, viewer in viewers.items():
                received[encoding] += await viewer.receive_until(b"video-frame")
        await phone.stream.aclose()
    size = sum(map(len, jpegs))
    print(f"{len(jpegs)} pictures of the demo's video: {size:,} bytes of JPEG")
    for name in viewers:
        # Each viewer saw every picture twice: from a phone of either encoding.
        for way, count in (("from the phone", sent[name]), ("to a viewer", received[name] // 2)):
            print(f"  {name} {way}: {count:,} bytes, {count / size:.4f} x")


async def _say(peer: Peer, subprotocol: str, **message: object) -> int:
    binary = subprotocol == "relay.v1.msgpack"
    encode = msgspec.msgpack.encode if binary else msgspec.json.encode
    return await peer.send(encode(message), binary=binary)


async def tls(relay: Target, handshakes: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we know whom we started

    async def shake_hands() -> None:
        stream = await trio.open_tcp_stream(relay.host, relay.port)
        encrypted = trio.SSLStream(stream, context, server_hostname=relay.host)
        await encrypted.do_handshake()
        await trio.aclose_forcefully(encrypted)

    await together(handshakes // 10, shake_hands)  # warm
    start = trio.current_time()
    await together(handshakes, shake_hands)
    seconds = trio.current_time() - start
    print(f"{handshakes} TLS handshakes: {handshakes / seconds:.0f} a second, both ends here")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("connections", "video", "tls", "logout")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(names)}")
    parser.add_argument("--storm", type=int, default=1000, help="that authenticate at once")
    parser.add_argument("--idle", type=int, default=2000, help="connections that idle")
    parser.add_argument("--pictures", type=int, default=250, help="of the demo's video")
    parser.add_argument("--handshakes", type=int, default=2000, help="of TLS")
    parser.add_argument("--logouts", type=int, default=50)
    parser.add_argument("--others", type=int, default=500, help="connected beside who signs out")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(names):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    most = max(options.storm, options.idle) + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(most, 1024), hard), hard))
    chosen = options.figures or names
    if "connections" in chosen:
        with running_relay() as relay:
            trio.run(connections, relay, options.storm, options.idle)
    if "video" in chosen:
        with running_relay() as relay:
            trio.run(video, relay, options.pictures)
    if "tls" in chosen:
        with running_relay("--dev-tls") as relay:
            trio.run(tls, relay, options.handshakes)
    if "logout" in chosen:
        with running_relay() as relay:

            async def join() -> Peer:
                peer = await relay.connect()
                await peer.upgrade()
                return peer

            trio.run(logout, relay.data_dir, join, options.logouts, options.others)


if __name__ == "__main__":
    main()
