"""What becomes of alerts when relays are killed, and how long an alert takes; for
scripts/figures.py."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles

import msgspec
import trio
from target import Peer, Target

from relay.postgres.embedded.embedded import open_embedded

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration.kill_scenario import play

SIZE = 64 * 1024
"""Bytes of a frame of the video beside it."""
VIEWERS = 10
PACE = 0.02
"""Seconds between alerts."""


def kills(rounds: int) -> None:
    """Kill a relay so often, on a database of its own."""
    seed = secrets.token_hex(4)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        tally = trio.run(_kill, Path(folder, "data"), rounds, seed)
    if not tally:
        raise SystemExit("FAILED")


async def _kill(data_dir: Path, rounds: int, seed: str) -> bool:
    async with open_embedded(data_dir) as url:
        start = time.monotonic()
        tally = await play(url, rounds=rounds, seed=seed)
        print(f"{time.monotonic() - start:.0f} s: {tally}")
        return tally.flawless


async def latency(relay: Target, alerts: int) -> None:
    """From the moment at which an alert is accepted, to that at which it is received."""
    phone = await _join(relay)
    await phone.say(binary=True, type="register", streamId="alerts", consumes=[])
    await phone.receive_until(b"REGISTERED")
    sender, viewer = await _join(relay), await _join(relay)
    consumes = ["video-frame", "alert"]
    await viewer.say(binary=True, type="subscribe", streamId="alerts", consumes=consumes)
    await viewer.receive_until(b"SUBSCRIBED")
    await _measure("idle", sender, viewer, alerts)
    async with trio.open_nursery() as nursery:
        for _ in range(VIEWERS):
            other = await _join(relay)
            await other.say(
                binary=True, type="subscribe", streamId="alerts", consumes=["video-frame"]
            )
            nursery.start_soon(_read_on, other)
        nursery.start_soon(_send_video, phone)
        await trio.sleep(1)
        before = relay.stats()["frames_to_consumers"]["written"]
        start = time.monotonic()
        await _measure("beside saturated video", sender, viewer, alerts)
        written = relay.stats()["frames_to_consumers"]["written"] - before
        rate = written / (time.monotonic() - start)
        print(f"  ({rate:.0f} frames of {SIZE // 1024} KiB a second to {VIEWERS + 1} viewers)")
        nursery.cancel_scope.cancel()


async def _measure(when: str, sender: Peer, viewer: Peer, alerts: int) -> None:
    accepted: dict[int, float] = {}
    received: dict[int, float] = {}

    async def receive() -> None:
        while len(received) < alerts:
            message = await viewer.receive_until(b"alertId")
            received[_content(message)["alertId"]] = time.perf_counter()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        asked = []
        for _ in range(alerts):
            start = time.perf_counter()
            await sender.say(
                binary=True, type="alert", streamId="alerts", severity="high", message="Smoke"
            )
            reply = _content(await sender.receive_until(b"ALERT_ACCEPTED"))
            accepted[reply["alertId"]] = time.perf_counter()
            asked.append(time.perf_counter() - start)
            await trio.sleep(PACE)
    # It may be received before the answer to its sender is.
    took = [received[each] - accepted[each] for each in accepted]
    print(f"{when}, {alerts} alerts: {_parts('sent to accepted', asked)};", end=" ")
    print(_parts("accepted to received", took))


def _parts(what: str, seconds: list[float]) -> str:
    parts = quantiles(seconds, n=100)
    return f"{what} p50 {parts[49] * 1000:.1f} ms, p99 {parts[98] * 1000:.1f} ms"


def _content(frame: bytes) -> dict[str, int]:
    header: Callable[[int], int] = {126: 4, 127: 10}.get(frame[1], 2).__add__
    content: dict[str, int] = msgspec.msgpack.decode(frame[header(0) :])
    return content


async def _join(relay: Target) -> Peer:
    peer = await relay.connect()
    await peer.upgrade("relay.v1.msgpack")
    await peer.say(binary=True, type="auth", token=relay.token)
    await peer.receive_until(b"AUTHENTICATED")
    return peer


async def _send_video(phone: Peer) -> None:
    frame = msgspec.msgpack.encode({"type": "video-frame", "data": bytes(SIZE), "timestamp": 1})
    while True:
        await phone.send(frame, binary=True)


async def _read_on(peer: Peer) -> None:
    while True:
        await peer.stream.receive_some(1 << 20)
