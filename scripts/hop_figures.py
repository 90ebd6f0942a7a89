"""What it costs a frame to cross from one node to another, and what a second worker gains; for
scripts/figures.py.

Relays of this checkout on one database, phones at one of them and viewers at the same one or at
another; the difference is the crossing. The floor is what the same frames take between two bare
sockets of Trio, in two processes. All of it alternates in one run. CPU is what the relays say of
themselves; that of the clients is not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen
from target import RELAY, Peer, Target

from relay.postgres.embedded.embedded import open_embedded
from relay.transport import wire

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.integration.accounts import Accounts

SETTLE = 1.0
"""Seconds before each measurement."""
TIMESTAMP = b"\xa9timestamp\xcf"
"""In front of an unsigned number of 8 bytes, in MessagePack."""
ENGINES = {
    "nats-server": ("nats-server", "--addr", "127.0.0.1", "--port", "PORT"),
    "valkey-server": ("valkey-server", "--bind", "127.0.0.1", "--port", "PORT", "--save", ""),
    "redis-server": ("redis-server", "--bind", "127.0.0.1", "--port", "PORT", "--save", ""),
}
"""What others put between nodes; those that are installed are measured."""
FLOOR = Path(__file__).with_name("bare_sockets.py")


@frozen
class Load:
    """What phones send, and how many watch each of them."""

    streams: int
    viewers: int
    size: int
    """Bytes of a frame."""
    rate: float
    """Frames a second of a stream."""

    def __str__(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{streams} x {self.viewers}, {self.size // 1024} KiB, {self.rate:g}/s"


CROSSINGS = (Load(20, 1, 2048, 50.0), Load(20, 1, 16 << 10, 50.0), Load(20, 1, 64 << 10, 20.0))
AUDIENCES = (Load(100, 2, 32 << 10, 30.0), Load(2, 60, 16 << 10, 100.0))


@frozen
class Measured:
    """One measurement."""

    cpu: float
    """Microseconds of all relays for each frame that a viewer got."""
    ages: list[float] = field(repr=False)
    """Milliseconds from a phone's `send` to a viewer."""
    missed: int

    def age(self, percent: int) -> float:
        """The age that this percentage of the frames did not exceed."""
        return statistics.quantiles(self.ages, n=100)[percent - 1]


@define(eq=False)
class Clients:
    """Phones at one relay, and viewers at the same one or at another."""

    phones: Target
    viewers: Target
    load: Load
    hints: bool
    """Whether they name their stream in the URL."""
    name: str = field(factory=lambda: f"hop-{time.monotonic_ns():x}")
    sent: int = 0
    ages: list[float] = field(factory=list)

    async def run(self, seconds: float) -> Measured:
        """Let them all work, and measure for so long."""
        relays = {each.pid: each for each in (self.phones, self.viewers)}.values()
        async with trio.open_nursery() as nursery:
            for number in range(self.load.streams):
                await nursery.start(self._phone, number)
            for _ in range(self.load.viewers):  # in turn, so that all workers fill up alike
                for number in range(self.load.streams):
                    await nursery.start(self._viewer, number)
            await trio.sleep(SETTLE)
            before, self.sent, self.ages = [cpu_of(each) for each in relays], 0, []
            await trio.sleep(seconds)
            used = sum(map(cpu_of, relays)) - sum(before)
            ages, expected = self.ages, self.sent * self.load.viewers
            nursery.cancel_scope.cancel()
        return Measured(used / len(ages) * 1e6, ages, max(0, expected - len(ages)))

    async def _open(self, relay: Target, number: int) -> tuple[Peer, str]:
        stream_id = f"{self.name}-{number}"
        peer = await relay.connect()
        query = f"?stream={stream_id}" if self.hints else ""
        await peer.upgrade("relay.v1.msgpack", query)
        await peer.say(binary=True, type="auth", token=relay.token)
        return peer, stream_id

    async def _phone(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        peer, stream_id = await self._open(self.phones, number)
        await peer.say(binary=True, type="register", streamId=stream_id)
        await peer.receive_until(b"REGISTERED")
        task_status.started()
        data, period = bytes(self.load.size), 1 / self.load.rate
        due = trio.current_time() + number / self.load.streams * period
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, peer)
            while True:
                await trio.sleep_until(due)
                due += period
                now = time.monotonic_ns()
                await peer.say(binary=True, type="video-frame", data=data, timestamp=now)
                self.sent += 1

    async def _viewer(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        peer, stream_id = await self._open(self.viewers, number)
        consumes = ["video-frame"]
        await peer.say(binary=True, type="subscribe", streamId=stream_id, consumes=consumes)
        await peer.receive_until(b"SUBSCRIBED")
        task_status.started()
        async for sent_at in _timestamps(peer):
            self.ages.append((time.monotonic_ns() - sent_at) / 1e6)


async def hop(rounds: int, seconds: float) -> None:
    """Print what crossings cost, over TCP with TLS and without."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        await trio.Path(folder).chmod(0o711)  # as root, Postgres runs as another user
        async with open_embedded(Path(folder, "data")) as url:
            token = Accounts(url).session("figures")
            print("a frame from node to node, microseconds of CPU, ages in ms")
            for tls in ("off", "on"):
                flags = ("--cluster-bind", "127.0.0.1:0", "--cluster-tls", tls)
                with node(url, token, *flags) as first, node(url, token, *flags) as second:
                    for load in CROSSINGS:
                        await _compare(first, second, load, rounds, seconds, tls)


async def workers(rounds: int, seconds: float) -> None:
    """Print what a second worker gains, and what two relays that share nothing would."""
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        await trio.Path(folder).chmod(0o711)
        async with open_embedded(Path(folder, "data")) as url:
            token = Accounts(url).session("figures")
            print("workers, microseconds of CPU for each frame that a viewer got")
            for load in AUDIENCES:
                await _compare_workers(url, token, load, rounds, seconds)


async def _compare(  # noqa: PLR0917 (what is told apart)
    first: Target, second: Target, load: Load, rounds: int, seconds: float, tls: str
) -> None:
    floors, alone, across = [], [], []
    engines: dict[str, list[float]] = {name: [] for name in ENGINES if shutil.which(name)}
    for _ in range(rounds):
        for name, times in engines.items():
            if tls == "off":
                times.append(await trio.to_thread.run_sync(bare_sockets, load, seconds, name))
        floors.append(await trio.to_thread.run_sync(bare_sockets, load, seconds))
        alone.append(await Clients(first, first, load, hints=False).run(seconds))
        across.append(await Clients(first, second, load, hints=False).run(seconds))
    floor, one = min(floors), min(each.cpu for each in alone)
    crossing = min(each.cpu for each in across) - one
    fresh, carried = (min(each, key=lambda run: run.age(50)) for each in (alone, across))
    print(
        f"  {load}, TLS {tls}: {crossing:.0f}, bare sockets {floor:.0f}: {crossing / floor:.2f} x;"
        f" all of one relay {one:.0f}; age p50 {fresh.age(50):.2f} -> {carried.age(50):.2f},"
        f" p99 {fresh.age(99):.2f} -> {carried.age(99):.2f};"
        f" missed {sum(run.missed for run in alone)} -> {sum(run.missed for run in across)}"
    )
    for name, times in engines.items():
        if times:
            print(f"    bare sockets through {name}: {min(times):.0f}")


async def _compare_workers(url: str, token: str, load: Load, rounds: int, seconds: float) -> None:
    kinds = {"1 process": ("1", False), "2 placed": ("2", True), "2 at random": ("2", False)}
    runs: dict[str, list[Measured]] = {each: [] for each in (*kinds, "2 apart")}
    for _ in range(rounds):
        for kind, (count, hints) in kinds.items():
            with node(url, token, "--workers", count) as relay:
                runs[kind].append(await Clients(relay, relay, load, hints=hints).run(seconds))
        with node(url, token) as first, node(url, token) as second:
            runs["2 apart"].append(await _run_apart(first, second, load, seconds))
    one = min(run.cpu for run in runs["1 process"])
    for kind, measured in runs.items():
        cpu = min(run.cpu for run in measured)
        gain = (1 if kind == "1 process" else 2) * one / cpu
        print(
            f"  {load}, {kind}: {cpu:.0f}, gain {gain:.2f};"
            f" age p50 {min(run.age(50) for run in measured):.2f} ms;"
            f" missed {sum(run.missed for run in measured)}"
        )


async def _run_apart(first: Target, second: Target, load: Load, seconds: float) -> Measured:
    """Half of the streams at each of two relays that know nothing of one another."""
    halves: list[Measured] = []

    async def run(relay: Target) -> None:
        half = evolve(load, streams=load.streams // 2)
        halves.append(await Clients(relay, relay, half, hints=False).run(seconds))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, first)
        nursery.start_soon(run, second)
    ages = [age for half in halves for age in half.ages]
    used = sum(half.cpu * len(half.ages) for half in halves)
    return Measured(used / len(ages), ages, sum(half.missed for half in halves))


async def _timestamps(peer: Peer) -> AsyncIterator[int]:
    """When the frames that come were sent. Pings are answered, so that the link is measured."""
    buffer = peer.buffer
    while True:
        size = _size(buffer)
        if size is None:
            received = await peer.stream.receive_some(1 << 20)
            if not received:
                raise EOFError(peer.passed_over)
            buffer += received
            continue
        at = buffer.find(TIMESTAMP, 0, min(size, 200))
        if at >= 0:
            at += len(TIMESTAMP)
            yield int.from_bytes(buffer[at : at + 8])
        elif buffer[0] == wire.FIN | wire.PING:
            await peer.stream.send_all(_pong(bytes(buffer[2:size])))
        del buffer[:size]


def _size(buffer: bytearray) -> int | None:
    """The bytes of the frame in front; None if it is not whole."""
    if len(buffer) < 2:
        return None
    header = {126: 4, 127: 10}.get(buffer[1], 2)
    if len(buffer) < header:
        return None
    size = header + (int.from_bytes(buffer[2:header]) if header > 2 else buffer[1])
    return size if len(buffer) >= size else None


def _pong(payload: bytes) -> bytes:
    """Masked with zeros, which leaves the payload as it is."""
    head = bytes((wire.FIN | wire.PONG, wire.MASKED | len(payload), 0, 0, 0, 0))
    return head + payload


async def _discard(peer: Peer) -> None:
    while await peer.stream.receive_some():
        pass


def cpu_of(relay: Target) -> float:
    """Seconds of CPU that a relay has used, with all its workers."""
    with urllib.request.urlopen(f"http://{relay.host}:{relay.port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r"^process_cpu_seconds_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def bare_sockets(load: Load, seconds: float, engine: str | None = None) -> float:
    """Microseconds of CPU for each frame between two bare sockets, or through an engine."""
    numbers = [str(load.size), str(load.rate * load.streams), str(seconds)]
    command = [sys.executable, str(FLOOR)]
    if engine is None:
        return _send_and_receive(command, "0", numbers)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [part.replace("PORT", str(port)) for part in ENGINES[engine]]
    with subprocess.Popen(
        [*command, "engine", *start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        _await_port(port)
        kind = "nats" if engine == "nats-server" else "redis"
        clients = _send_and_receive(command, str(port), [*numbers, kind])
        running.stdin.close()
        frames = load.rate * load.streams * seconds
        return clients + float(running.stdout.read()) / frames * 1e6


def _send_and_receive(command: Sequence[str], port: str, rest: Sequence[str]) -> float:
    with subprocess.Popen(
        [*command, "receive", port, *rest], stdout=subprocess.PIPE, text=True
    ) as receiving:
        assert receiving.stdout is not None
        port = receiving.stdout.readline().strip()
        sending = subprocess.run(
            [*command, "send", port, *rest], stdout=subprocess.PIPE, text=True, check=True
        )
        return float(sending.stdout) + float(receiving.stdout.read())


def _await_port(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens at port {port}")


@contextmanager
def node(url: str, token: str, *flags: str) -> Iterator[Target]:
    """A relay of this checkout on a database."""
    command: Sequence[str] = [*RELAY, "serve", "--bind", "127.0.0.1:0", "--profile", "load"]
    command = [*command, "--log-level", "error", *flags]
    environment = {**os.environ, "RELAY_DATABASE_URL": url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            address = re.search(r"http://(.+):(\d+)", process.stdout.readline())
            if address is None:
                raise SystemExit("relay did not start")
            yield Target(process.pid, address[1], int(address[2]), token)
        finally:
            process.send_signal(signal.SIGTERM)
