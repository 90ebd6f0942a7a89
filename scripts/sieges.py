"""What storms and floods do to a relay with the limits that are on by default; for
scripts/figures.py.

Who floods is a process of its own that gives way to everybody else on its CPU, so that what it
costs itself is not taken for what it costs the relay.
"""

from __future__ import annotations

import os
import re
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import quantiles

import msgspec
import psutil
import trio
from attrs import define, field
from target import Peer, Target

from relay.postgres.store import open_store
from relay.settings.settings import Settings
from relay.transport import wire

PROJECT = Path(__file__).parents[1]
PAIRS, SIZE, FPS = 50, 16 * 1024, 10.0
"""Honest phones with a viewer each; the bytes of their frames, and their rate."""
HEAVY_ALERTS = 600
"""As many as one user may send in a minute."""
GUESSING, SILENT = 500, 1000
"""Connections that guess at a time, and that say nothing."""


def cpu_seconds(relay: Target) -> float:
    times = psutil.Process(relay.pid).cpu_times()
    return float(times.user + times.system)


async def storm(relay: Target, clients: int) -> None:
    async with open_store(Settings(data_dir=relay.data_dir)) as store:
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

    async def join_all() -> None:
        async with trio.open_nursery() as nursery:
            for token in tokens:
                nursery.start_soon(join, token)

    await join_all()
    for peer in peers:
        await trio.aclose_forcefully(peer.stream)
    peers.clear()
    asked, cpu, start = relay.stats(), cpu_seconds(relay), trio.current_time()
    await join_all()
    seconds, cpu = trio.current_time() - start, cpu_seconds(relay) - cpu
    queries = relay.stats()["verification_queries"] - asked["verification_queries"]
    print(
        f"{clients} users of one address come back at once, each with connection, upgrade and auth:"
        f" {seconds:.2f} s, {clients / seconds:.0f} a second,"
        f" {cpu / clients * 1000:.2f} ms of the relay's CPU each;"
        f" {queries} queries, {queries / clients:.3f} for each"
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

    async def stream(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        phone, viewer = await self._join(), await self._join()
        await phone.say(binary=True, type="register", streamId=name)
        await phone.receive_until(b"REGISTERED")
        lossless = {"consumes": ["video-frame"], "policy": "lossless"}
        await viewer.say(binary=True, type="subscribe", streamId=name, **lossless)
        await viewer.receive_until(b"SUBSCRIBED")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, viewer)
            task_status.started()
            due = trio.current_time() + self.sent % 10 / 10 / FPS  # not all at once
            while True:
                await trio.sleep_until(due)
                due += 1 / FPS
                now = time.monotonic() * 1000
                self.sent += 1
                frame = {"type": "video-frame", "data": bytes(SIZE), "timestamp": now}
                await phone.say(binary=True, **frame)

    async def _join(self) -> Peer:
        """A client that is let in, at the second or third attempt where the machine is busy."""
        while True:
            peer = await self.relay.connect()
            await peer.upgrade("relay.v1.msgpack")
            await peer.say(binary=True, type="auth", token=self.relay.token)
            try:
                await peer.receive_until(b"AUTHENTICATED")
            except EOFError as ended:
                if not re.search(rb"AUTH_(UNAVAILABLE|TIMEOUT)", ended.args[0]):
                    raise
                await trio.sleep(2)
            else:
                return peer

    async def _watch(self, viewer: Peer) -> None:
        while True:
            message = await viewer.receive_until(b"video-frame")
            now = time.monotonic() * 1000
            size = len(wire.frame(wire.BINARY, bytes(SIZE))) - SIZE  # of the header
            self.received += 1
            self.ages.append(now - msgspec.msgpack.decode(message[size:])["timestamp"])

    async def observe(self, seconds: float, when: str) -> None:
        self.ages.clear()
        cpu, start = cpu_seconds(self.relay), time.monotonic()
        await trio.sleep(seconds)
        busy = (cpu_seconds(self.relay) - cpu) / (time.monotonic() - start)
        parts = quantiles(self.ages, n=100)
        print(
            f"  {when}: age of {len(self.ages)} frames p50 {parts[49]:.1f} ms, p90 {parts[89]:.1f},"
            f" p99 {parts[98]:.1f}, most {max(self.ages):.1f}; the relay is busy {busy:.0%},"
            f" {self.relay.resident() / 2**20:.1f} MiB resident",
            flush=True,
        )


async def _heavy_alerts(relay: Target, honest: Honest, seconds: float) -> None:
    """A user with an ordinary account sends alerts of 65,000 lists."""
    print(f"  {HEAVY_ALERTS} alerts of 64 KiB with 65,000 lists, of one user:", flush=True)
    async with open_store(Settings(data_dir=relay.data_dir)) as store:
        token = await store.sessions.create("mallory@example.com", timedelta(days=1))
    attack = ["nice", "-n", "19", sys.executable, "scripts/alert_flood.py"]
    attack += [relay.host, str(relay.port), str(HEAVY_ALERTS)]
    run = partial(trio.run_process, attack, cwd=PROJECT, stdin=f"{token}\n".encode())
    async with trio.open_nursery() as during:
        during.start_soon(run)
        await honest.observe(seconds, "during")
        begun = time.monotonic()
        peer = await relay.connect()
        await peer.upgrade()
        await peer.authenticate(relay.token)
        await peer.send(b'{"type":"subscribe","streamId":"honest-0","consumes":["alert"]}')
        await peer.receive_until(b"SUBSCRIBED")
        print(f"  a client is let in after {time.monotonic() - begun:.2f} s", flush=True)
        begun = time.monotonic()
        await peer.send(
            b'{"type":"alert","streamId":"honest-0","severity":"low","message":"honest"}'
        )
        await peer.receive_until(b'"honest"')
        print(f"  and gets an alert after {time.monotonic() - begun:.2f} s", flush=True)
        await peer.stream.aclose()
    await honest.observe(seconds, "after")


async def hostile(relay: Target, seconds: float) -> None:
    honest = Honest(relay)
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        first, *others = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(relay.pid, {first})
        os.sched_setaffinity(0, others)
    print(f"{PAIRS} phones, a viewer each, {FPS:g} frames of {SIZE // 1024} KiB a second, while")
    print(f"  {GUESSING} connections at a time guess tokens, and {SILENT} say nothing:")
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as joining:
            for number in range(PAIRS):
                joining.start_soon(nursery.start, honest.stream, f"honest-{number}")
        await honest.observe(3, "warming up")
        await honest.observe(seconds, "before")
        attack = ["nice", "-n", "19", sys.executable, "-m", "tests.integration.flood"]
        attack += [str(relay.port), str(round(seconds) + 2), str(GUESSING), str(SILENT)]
        async with trio.open_nursery() as during:
            during.start_soon(partial(trio.run_process, attack, cwd=PROJECT))
            await trio.sleep(1)
            await honest.observe(seconds / 2, "during")
            await honest.observe(seconds / 2, "during, on")
        await trio.sleep(3)
        await honest.observe(seconds, "after")
        async with open_store(Settings(data_dir=relay.data_dir)) as store:
            token = await store.sessions.create("costly@example.com", timedelta(days=1))
        attack = ["nice", "-n", "19", sys.executable, "-m", "tests.integration.costly"]
        attack += [str(relay.port), str(round(seconds) + 2)]
        environment = {**os.environ, "TOKEN": token}
        async with trio.open_nursery() as during:
            during.start_soon(partial(trio.run_process, attack, cwd=PROJECT, env=environment))
            await trio.sleep(1)
            await honest.observe(seconds, "while one user sends what is costly")
        await trio.sleep(3)
        await honest.observe(seconds, "after that")
        await _heavy_alerts(relay, honest, seconds)
        await trio.sleep(1 / FPS)
        nursery.cancel_scope.cancel()
    stats = relay.stats()
    met = {name: number for name, number in stats["limits_hit"].items() if number}
    lost = stats["frames_accepted"] - stats["frames_to_consumers"]["written"]
    print(f"  frames sent {honest.sent}, received {honest.received}, lost in the relay {lost}")
    print(f"  limits met: {met or 'none'}; queries: {stats['verification_queries']}")
