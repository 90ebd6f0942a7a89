"""Measures a relay on this machine. What it starts, it stops; all traffic stays on loopback.

    ./scripts/relay --version && .venv/bin/python scripts/figures.py [FIGURE ...]

`connections`: many that authenticate at once, and the memory of idle ones. `video`: the bytes that
the demo's video takes on the wire in either encoding. `tls`: handshakes per second. `storm`: users
that are cut off and come back all at once. `hostile`: what honest streams notice of a flood of
guesses (on Linux). The last two with the limits that are on by default. The clients are as plain as
can be, so that their own work delays the answers little; what it still takes is part of the times.
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
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
import psutil
import trio
from attrs import define, field, frozen

from relay.app import open_store
from relay.config import Settings
from relay.demo.video import default_video, play
from relay.transport import wire

RELAY = [sys.executable, "-m", "relay"]
PROJECT = Path(__file__).parents[1]
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

    async def receive(self) -> tuple[bytearray, int]:
        """The next message, and its bytes on the wire."""
        while len(self.buffer) < 2:
            await self._receive()
        header = {126: 4, 127: 10}.get(self.buffer[1], 2)
        while len(self.buffer) < header:
            await self._receive()
        length = int.from_bytes(self.buffer[2:header]) if header > 2 else self.buffer[1]
        size = header + length
        while len(self.buffer) < size:
            await self._receive()
        message = self.buffer[header:size]
        del self.buffer[:size]
        return message, size

    async def receive_until(self, mark: bytes) -> int:
        """Read on until a message has this in it; returns that one's bytes on the wire."""
        while True:
            message, size = await self.receive()
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
    data: Path

    async def connect(self) -> Peer:
        return Peer(await trio.open_tcp_stream(self.host, self.port), self.host)

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/stats") as answer:
            totals: dict[str, Any] = json.load(answer)
            return totals

    def cpu(self) -> float:
        """Seconds of CPU time so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def resident(self) -> int:
        """Bytes of memory."""
        command = ["ps", "-o", "rss=", "-p", str(self.pid)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(output) * 1024


@contextmanager
def running_relay(*flags: str, profile: str = "load") -> Iterator[Target]:
    """A relay with an embedded database in a folder of its own; both are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        data = ["--data-dir", str(Path(folder, "data"))]
        command = [*RELAY, "serve", "--bind", "127.0.0.1:0", *data, *flags]
        command += ["--profile", profile, "--log-level", "error"]
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


async def storm(relay: Target, clients: int) -> None:
    async with open_store(Settings(data_dir=relay.data)) as store:
        tokens = [
            await store.sessions.create(f"{number}@example.com", timedelta(days=1))
            for number in range(clients)
        ]
    peers: list[Peer] = []

    async def join(token: str) -> None:
        peer = await relay.connect()
        await peer.upgrade()
        await peer.authenticate(token)
        peers.append(peer)

    async with trio.open_nursery() as nursery:
        for token in tokens:
            nursery.start_soon(join, token)
    for peer in peers:
        await trio.aclose_forcefully(peer.stream)
    peers.clear()
    asked, cpu, start = relay.stats(), relay.cpu(), trio.current_time()
    async with trio.open_nursery() as nursery:
        for token in tokens:
            nursery.start_soon(join, token)
    seconds, cpu = trio.current_time() - start, relay.cpu() - cpu
    queries = relay.stats()["verification_queries"] - asked["verification_queries"]
    print(
        f"{clients} users come back at once, connection, upgrade and auth: {seconds:.2f} s,"
        f" {clients / seconds:.0f} a second, {cpu / clients * 1000:.2f} ms of the relay's CPU each;"
        f" {queries} queries, {queries / clients:.4f} for each"
    )
    for peer in peers:
        await peer.stream.aclose()


@define(eq=False)
class Honest:
    """Phones and their viewers, who note how old each frame is when it arrives."""

    relay: Target
    ages: list[float] = field(factory=list)
    """Milliseconds, since the last look."""
    sent: int = 0
    received: int = 0
    fps: float = 10.0
    size: int = 16 * 1024

    async def stream(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        subprotocol = "relay.v1.msgpack"
        phone, viewer = await self.relay.connect(), await self.relay.connect()
        for peer in (phone, viewer):
            await peer.upgrade(subprotocol)
            await _say(peer, subprotocol, type="auth", token=self.relay.token)
        await _say(phone, subprotocol, type="register", streamId=name)
        await phone.receive_until(b"REGISTERED")
        lossless = {"consumes": ["video-frame"], "policy": "lossless"}
        await _say(viewer, subprotocol, type="subscribe", streamId=name, **lossless)
        await viewer.receive_until(b"SUBSCRIBED")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, viewer)
            task_status.started()
            data, due = bytes(self.size), trio.current_time() + self.sent % 10 / 10 / self.fps
            while True:
                await trio.sleep_until(due)
                due += 1 / self.fps
                now = time.monotonic() * 1000
                self.sent += 1
                await _say(phone, subprotocol, type="video-frame", data=data, timestamp=now)

    async def _watch(self, viewer: Peer) -> None:
        while True:
            message, _ = await viewer.receive()
            now = time.monotonic() * 1000
            frame = msgspec.msgpack.decode(message) if message else {"type": "ping"}
            if frame["type"] == "video-frame":
                self.received += 1
                self.ages.append(now - frame["timestamp"])

    async def observe(self, seconds: float, when: str) -> None:
        self.ages.clear()
        cpu, start = self.relay.cpu(), time.monotonic()
        await trio.sleep(seconds)
        busy = (self.relay.cpu() - cpu) / (time.monotonic() - start)
        parts = quantiles(self.ages, n=100)
        print(
            f"  {when}: age of {len(self.ages)} frames p50 {parts[49]:.1f} ms, p90 {parts[89]:.1f},"
            f" p99 {parts[98]:.1f}, most {max(self.ages):.1f}; the relay is busy {busy:.0%},"
            f" {self.relay.resident() / 2**20:.1f} MiB resident"
        )


async def hostile(relay: Target, seconds: int) -> None:
    honest = Honest(relay)
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(relay.pid, {first})
        os.sched_setaffinity(0, others)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            await nursery.start(honest.stream, f"honest-{number}")
        print("50 phones, a viewer each, 10 frames of 16 KiB a second, while others guess tokens:")
        await honest.observe(3, "warming up")
        await honest.observe(seconds, "before")
        # What they cost themselves is not to count: honest clients go first on their CPU.
        attack = ["nice", "-n", "19", sys.executable, "-m", "tests.integration.flood"]
        attack += [str(relay.port), str(seconds + 2), "500", "1000"]
        async with trio.open_nursery() as during:
            during.start_soon(partial(trio.run_process, attack, cwd=PROJECT))
            await trio.sleep(1)
            await honest.observe(seconds, "during")
        await trio.sleep(3)
        await honest.observe(seconds, "after")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    stats = relay.stats()
    print(f"  frames sent {honest.sent}, received {honest.received}")
    met = {name: number for name, number in stats["limits_hit"].items() if number}
    print(f"  limits met: {met}; queries: {stats['verification_queries']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ("connections", "video", "tls", "storm", "hostile")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(names)}")
    parser.add_argument("--storm", type=int, default=1000, help="that authenticate at once")
    parser.add_argument("--clients", type=int, default=2000, help="of the storm that comes back")
    parser.add_argument("--seconds", type=int, default=20, help="of each part of hostile")
    parser.add_argument("--idle", type=int, default=2000, help="connections that idle")
    parser.add_argument("--pictures", type=int, default=250, help="of the demo's video")
    parser.add_argument("--handshakes", type=int, default=2000, help="of TLS")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(names):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    most = max(options.storm, options.idle, options.clients) + SPARE_FILES
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
    if "storm" in chosen:
        with running_relay(profile="default") as relay:
            trio.run(storm, relay, options.clients)
    if "hostile" in chosen:
        own = ("--max-connections-per-user", "200")  # all of them are one user's
        with running_relay(*own, profile="default") as relay:
            trio.run(hostile, relay, options.seconds)


if __name__ == "__main__":
    main()
