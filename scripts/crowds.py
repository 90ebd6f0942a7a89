"""How fair a relay is under load, and what viewers cost that do not read; for scripts/figures.py.

The load comes from processes of its own, which this file is the program of, so that it delays what
is measured by what it asks of the relay only.
"""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import trio
from attrs import define, field
from target import Peer, Target, together

from relay.transport import wire

SMALL, SMALL_RATE = 2048, 50.0
"""Bytes, and frames a second, of the stream whose age is measured."""
CROWD, CROWD_RATE = 16 * 1024, 30.0
FLOODS = {"frames of 64 KiB": 64 * 1024, "frames of 100 bytes": 100, "pings": 0}
STALLED, STALLED_RATE = 64 * 1024, 20.0
RECEIVE_BUFFER = 64 * 1024
MIB = 1 << 20
MEANWHILE = 5.0
"""Seconds between two looks at the memory."""


@define(eq=False)
class Ages:
    """Milliseconds from a phone's `send` to its viewer."""

    values: list[float] = field(factory=list)
    sent: int = 0

    def __str__(self) -> str:
        p50, p99 = (statistics.quantiles(self.values, n=100)[at] for at in (49, 98))
        missed = self.sent - len(self.values)
        return (
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(self.values):.1f} ms, {missed} missed"
        )


async def fairness(relay: Target, viewers: int, seconds: float) -> None:
    rate = f"{SMALL / 1024:g} KiB at {SMALL_RATE:g}/s"
    print(f"age of a small stream's frames ({rate}) from phone to viewer, {seconds:g} s each")
    print(f"  alone: {await measure(relay, seconds)}")
    audience = f"{viewers} viewers of {CROWD // 1024} KiB at {CROWD_RATE:g}/s"
    with load(relay, "crowd", str(viewers)) as crowd:
        ages = await measure(relay, seconds)
        print(f"  beside {audience}: {ages}; {finish(crowd)}")
    for name in FLOODS:
        with load(relay, "flood", name) as flood:
            ages = await measure(relay, seconds)
            print(f"  beside a flood of {name}: {ages}; {finish(flood)}")
    print(f"  alone again: {await measure(relay, seconds)}")


async def measure(relay: Target, seconds: float) -> Ages:
    """Send a small stream to one viewer, and look at each frame's age."""
    ages, name = Ages(), f"small-{time.time()}"
    phone, viewer = await join(relay, "phone", name), await join(relay, "viewer", name)

    async def watch() -> None:
        decode = msgspec.msgpack.decode
        while True:
            frame = await viewer.receive_until(b"receivedAt")
            message = decode(frame[4:])  # behind a header for 126 to 65535 bytes
            ages.values.append(time.time() * 1000 - message["timestamp"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        due = trio.current_time()
        for _ in range(int(seconds * SMALL_RATE)):
            due += 1 / SMALL_RATE
            await trio.sleep_until(due)
            ages.sent += 1
            await phone.say(
                binary=True, type="video-frame", timestamp=time.time() * 1000, data=bytes(SMALL)
            )
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    for peer in (phone, viewer):
        await peer.stream.aclose()
    return ages


async def memory(relay: Target, viewers: int, seconds: float) -> None:
    """The resident memory, beside that of the kernel's buffers, while viewers do not read."""
    phone = await join(relay, "phone", "stalled")
    peers: list[Peer] = []

    async def stall() -> None:
        peers.append(await join(relay, "viewer", "stalled", receive_buffer=RECEIVE_BUFFER))

    await together(viewers, stall)
    joined = relay.resident()
    kind = f"{STALLED // 1024} KiB at {STALLED_RATE:g}/s"
    print(
        f"{viewers} viewers that do not read {kind}: {joined / MIB:.1f} MiB before the first frame"
    )
    start = due = trio.current_time()
    looks: list[float] = []
    while (now := trio.current_time()) - start < seconds:
        if now - start >= MEANWHILE * (len(looks) + 1):
            looks.append(relay.resident() / MIB)
            print(f"  after {now - start:.0f} s: {looks[-1]:.1f} MiB", flush=True)
        due += 1 / STALLED_RATE
        await trio.sleep_until(due)
        await phone.say(binary=True, type="video-frame", data=bytes(STALLED))
    totals = relay.stats()
    print(f"  then {relay.resident() / MIB:.1f} MiB; {totals['frames_to_consumers']}")
    for peer in (phone, *peers):
        await peer.stream.aclose()


async def join(relay: Target, role: str, stream: str, *, receive_buffer: int | None = None) -> Peer:
    """A phone or a viewer of a stream, in MessagePack."""
    peer = await relay.connect(receive_buffer)
    await peer.upgrade("relay.v1.msgpack")
    await peer.say(binary=True, type="auth", token=relay.token)
    await peer.receive_until(b"AUTHENTICATED")
    if role == "phone":
        await peer.say(binary=True, type="register", streamId=stream)
        await peer.receive_until(b"REGISTERED")
    else:
        await peer.say(binary=True, type="subscribe", streamId=stream, consumes=["video-frame"])
        await peer.receive_until(b"SUBSCRIBED")
    return peer


# -- the load, in a process of its own


@contextmanager
def load(relay: Target, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that loads the relay from when it is ready to the end of the block."""
    command = [sys.executable, str(Path(__file__)), relay.host, str(relay.port), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(relay.token + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"no load: {arguments}")
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """End a load; returns what it says that it did."""
    said, _ = process.communicate()
    return said.strip()


def main() -> None:
    os.nice(10)  # what is measured goes first where there are too few cores
    host, port, kind, argument = sys.argv[1:]
    relay = Target(0, host, int(port), sys.stdin.readline().strip())
    if kind == "crowd":
        sockets, phone = trio.run(gather, relay, int(argument))
        attend(sockets, phone)
    else:
        flood(trio.run(gather, relay, 1), FLOODS[argument])


async def gather(relay: Target, viewers: int) -> tuple[list[socket.socket], socket.socket]:
    """Connect a phone and its viewers; returns their sockets, which outlive Trio's loop."""
    phone = plain(await join(relay, "phone", "loud"))
    sockets: list[socket.socket] = []

    async def watch() -> None:
        sockets.append(plain(await join(relay, "viewer", "loud")))

    await together(viewers, watch)
    return sockets, phone


def plain(peer: Peer) -> socket.socket:
    assert isinstance(peer.stream, trio.SocketStream)
    return socket.socket(fileno=peer.stream.socket.detach())


def attend(viewers: list[socket.socket], phone: socket.socket) -> None:
    """Send frames at their rate and read what comes, until stdin ends."""
    frame = masked(wire.BINARY, {"type": "video-frame", "data": bytes(CROWD)})
    buffer = bytearray(1 << 18)
    phone.setblocking(True)  # noqa: FBT003 (it has no name for it)
    received = sent = 0
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        for viewer in viewers:
            selector.register(viewer, selectors.EVENT_READ, viewer)
        print("ready", flush=True)
        start = time.monotonic()
        while True:
            due = start + sent / CROWD_RATE
            for key, _ in selector.select(max(0, due - time.monotonic())):
                if key.data is None:
                    seconds = time.monotonic() - start
                    rate = received / CROWD / len(viewers) / seconds
                    print(f"each got {rate:.1f} of {sent / seconds:.1f} frames a second")
                    return
                received += key.data.recv_into(buffer)
            if time.monotonic() >= due:
                phone.sendall(frame)
                sent += 1


def flood(ends: tuple[list[socket.socket], socket.socket], size: int) -> None:
    """Send without pause and read what comes, until stdin ends."""
    (viewer,), phone = ends
    unit = masked(wire.BINARY, {"type": "video-frame", "data": bytes(size)})
    if not size:
        unit = bytes((wire.FIN | wire.PING, wire.MASKED, 0, 0, 0, 0))
    data = memoryview(unit * max(1, MIB // len(unit)))
    buffer, sent = bytearray(1 << 18), 0
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        for end in (viewer, phone):
            end.setblocking(False)  # noqa: FBT003 (it has no name for it)
            selector.register(end, selectors.EVENT_READ, end)
        selector.modify(phone, selectors.EVENT_READ | selectors.EVENT_WRITE, phone)
        print("ready", flush=True)
        start = time.monotonic()
        while True:
            for key, events in selector.select():
                if key.data is None:
                    seconds = time.monotonic() - start
                    print(f"{sent / MIB / seconds:.1f} MiB/s, {sent / len(unit) / seconds:,.0f}/s")
                    return
                if events & selectors.EVENT_READ:
                    key.data.recv_into(buffer)
                if events & selectors.EVENT_WRITE:
                    sent += phone.send(data[sent % len(data) :])


def masked(opcode: int, message: dict[str, object]) -> bytes:
    """A message on the wire, masked with zeros."""
    content = msgspec.msgpack.encode(message)
    frame = bytearray(wire.frame(opcode, content))
    header = len(frame) - len(content)
    frame[1] |= wire.MASKED
    return bytes(frame[:header]) + bytes(4) + content


if __name__ == "__main__":
    main()
