"""How fresh pictures are over thin links, and how many come; for scripts/figures.py.

All links of a server are measured at the same time: viewers of one stream behind links of their
own, and phones whose pictures a viewer with a perfect link sees. On a link of changing rate, each
rate has a third of the time.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio
from attrs import define, field, frozen
from kernel_links import KernelLink, Namespaces, NoNamespaces, open_namespaces, prefix, why_not
from narrow_link import Connect, Direction, Link, connect_to, serve_link
from target import running_relay
from thin_link_report import Arrivals, Case, Row, rows_of, show

import relay
from relay.client import Frame, PicturePlan, open_relay_client
from relay.client.dial import dial
from relay.client.errors import Closed, DialFailed
from relay.client.websocket import WebSocket

DEEP_QUEUE_BYTES = 4 * 1024 * 1024
"""What home routers and radios hold at worst."""
ONE_WAY_SECONDS = 0.02
FRAME_BYTES, FRAMES_PER_SECOND = 64 * 1024, 30.0
"""Of the stream that viewers behind thin links watch."""
PICTURE_WIDTH, PICTURE_BYTES = 640, 40_000
"""What the camera of the page makes of so many pixels with a quality of 0.72."""
QUALITY_BYTES = {0.8: 1.29, 0.72: 1.0, 0.62: 0.79, 0.54: 0.67, 0.46: 0.58, 0.38: 0.48, 0.3: 0.37}
"""The bytes of a picture by its quality, as a part of these; as Chromium encodes them."""
WIDTH_EXPONENT = 1.7
"""How the bytes grow with the width, there."""
MEGABIT = 125_000.0
"""Bytes."""
CASES = (
    Case("1 Mbit/s", (1.0,), "plain"),
    Case("1 Mbit/s", (1.0,), "relay's"),
    Case("5, 0.5, 5 Mbit/s", (5.0, 0.5, 5.0), "plain"),
    Case("5, 0.5, 5 Mbit/s", (5.0, 0.5, 5.0), "relay's"),
    Case("up, 1 Mbit/s", (1.0,), "relay's", up=True),
    Case("up, 0.5 Mbit/s", (0.5,), "relay's", up=True),
)
PROJECT = Path(__file__).resolve().parents[1]
PEERS = PROJECT / "scripts" / "benchmark" / "peers"
BENCH = PROJECT / ".venv-bench"
"""The environment of scripts/bench, which has what the other servers need."""
OTHER_SERVERS = ("bun", "ws", "websockets")
KERNEL, BEFORE = "relay-kernel", "relay-before"
"""relay with its links in network namespaces, and relay of another checkout."""
SERVERS = ("relay", KERNEL, BEFORE, *OTHER_SERVERS)
STAMP = struct.Struct("!d")


class Picture(msgspec.Struct):
    """What is read of a message."""

    data: bytes = b""


@frozen
class Server:
    """Where a server is, and how to speak to it."""

    port: int
    token: str = field(default="none", repr=False)
    is_relay: bool = True
    namespaces: Namespaces | None = None
    """Where it is, if not on this loopback."""

    async def connect(self) -> trio.SocketStream:
        """Connect without a thin link."""
        if self.namespaces is None:
            return await connect_to("127.0.0.1", self.port)
        return await self.namespaces.connect("127.0.0.1", self.port)


@define(eq=False)
class PlainClient:
    """A WebSocket that answers pings as browsers do, and acknowledges nothing."""

    socket: WebSocket
    packs: bool

    async def say(self, **message: object) -> None:
        if self.packs:
            await self.socket.send(msgspec.msgpack.encode(message))
        else:
            await self.socket.send(msgspec.json.encode(message).decode())

    async def ask(self, **message: object) -> None:
        answers: list[bytes] = []
        await self.say(**message)
        while not any(b"success" in answer for answer in answers):
            await self.socket.read(lambda answer: answers.append(bytes(answer[:300])))
            if any(b"error" in answer for answer in answers):
                raise SystemExit(f"the server refused {message['type']}: {answers}")

    async def watch(self, arrivals: Arrivals) -> None:
        def look(message: memoryview) -> None:
            if message[0] != ord("{"):  # what other servers say in JSON
                note(arrivals, msgspec.msgpack.decode(message, type=Picture).data)

        while True:
            await self.socket.read(look)


def note(arrivals: Arrivals, data: bytes) -> None:
    if len(data) > STAMP.size:
        now = trio.current_time()
        arrivals.add(now, now - STAMP.unpack_from(data)[0])


def picture_bytes(plan: PicturePlan) -> int:
    """The bytes that a camera makes of a plan."""
    above = min(quality for quality in QUALITY_BYTES if quality >= plan.quality)
    below = max(quality for quality in QUALITY_BYTES if quality <= plan.quality)
    part = (plan.quality - below) / (above - below) if above > below else 0.0
    quality_bytes = QUALITY_BYTES[below] + part * (QUALITY_BYTES[above] - QUALITY_BYTES[below])
    width_bytes = math.pow(plan.width / PICTURE_WIDTH, WIDTH_EXPONENT)
    return round(PICTURE_BYTES * width_bytes * quality_bytes)


def picture(size: int) -> bytes:
    """One that says when it was taken."""
    return STAMP.pack(trio.current_time()).ljust(size, b"\0")


@asynccontextmanager
async def plain_client(port: int, server: Server) -> AsyncIterator[PlainClient]:
    subprotocols = ["relay.v1.msgpack"] if server.is_relay else []
    url = f"ws://127.0.0.1:{port}/streams/subscribe"
    async with dial(url, subprotocols=subprotocols) as socket:
        client = PlainClient(socket, server.is_relay)
        await client.ask(type="auth", token=server.token)
        yield client


@define(eq=False)
class Measurement:
    """One server, and all links at the same time."""

    server: Server
    cases: Sequence[Case]
    seconds: float
    arrivals: dict[Case, Arrivals] = field(factory=dict)
    began: float = 0.0
    _links: dict[Case, Callable[[float], None]] = field(factory=dict)
    """Sets the rate of each, in bytes a second."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            direct = await nursery.start(serve_link, Link(), self.server.connect)
            for number, case in enumerate(self.cases):
                self.arrivals[case] = Arrivals()
                port = await nursery.start(serve_link, *self._open_link(case))
                self._links[case](case.mbits[0] * MEGABIT)
                if case.up:
                    await nursery.start(self._watch_plainly, case, direct, f"up-{number}")
                    await nursery.start(self._take_pictures, port, f"up-{number}")
                else:
                    watch = self._watch_plainly if case.client == "plain" else self._watch
                    await nursery.start(watch, case, port, "down")
            await nursery.start(self._send_frames, direct)
            self.began = trio.current_time()
            for third in range(3):
                for case in self.cases:
                    if len(case.mbits) > 1:
                        self._links[case](case.mbits[third] * MEGABIT)
                await trio.sleep_until(self.began + self.seconds * (third + 1) / 3)
            nursery.cancel_scope.cancel()

    def _open_link(self, case: Case) -> tuple[Link, Connect]:
        """A link that makes the round trip, and how its far end connects."""
        if self.server.namespaces is not None:  # the queue is the kernel's
            kernel_link: KernelLink = self.server.namespaces.add_link()
            self._links[case] = partial(kernel_link.set_rate, up=case.up)
            ends = Direction(delay=ONE_WAY_SECONDS), Direction(delay=ONE_WAY_SECONDS)
            return Link(*ends), partial(kernel_link.connect, self.server.port)
        thin = Direction(queue=DEEP_QUEUE_BYTES, delay=ONE_WAY_SECONDS)
        wide = Direction(delay=ONE_WAY_SECONDS)
        self._links[case] = partial(setattr, thin, "rate")
        link = Link(wide, thin) if case.up else Link(thin, wide)
        return link, self.server.connect

    async def _watch_plainly(
        self,
        case: Case,
        port: int,
        stream: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        arrivals = self.arrivals[case]
        try:
            async with plain_client(port, self.server) as client:
                await client.ask(type="subscribe", streamId=stream, consumes=["video-frame"])
                task_status.started()
                await client.watch(arrivals)
        except (Closed, DialFailed) as failure:
            arrivals.ended = str(failure)

    async def _watch(
        self,
        case: Case,
        port: int,
        stream: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with open_relay_client(f"ws://127.0.0.1:{port}", self.server.token) as client:
            client.subscribe(stream, alerts=False)
            await client.ready()
            task_status.started()
            async for event in client:
                if isinstance(event, Frame):
                    note(self.arrivals[case], event.data)

    async def _send_frames(
        self, port: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with plain_client(port, self.server) as phone:
            await phone.ask(type="register", streamId="down")
            task_status.started()
            due = trio.current_time()
            while True:
                message = {"type": "video-frame", "data": picture(FRAME_BYTES)}
                await phone.socket.send(msgspec.msgpack.encode(message))
                due = max(due + 1 / FRAMES_PER_SECOND, trio.current_time())
                await trio.sleep_until(due)

    async def _take_pictures(
        self,
        port: int,
        stream: str,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a phone of the project's own client, which decides what it sends."""
        async with open_relay_client(f"ws://127.0.0.1:{port}", self.server.token) as client:
            publication = client.publish(stream)
            await publication.wanted()
            task_status.started()
            due = trio.current_time()
            while True:
                plan = publication.next(fps=FRAMES_PER_SECOND, width=PICTURE_WIDTH)
                if plan is not None:
                    publication.send_frame(picture(picture_bytes(plan)))
                due = max(due + 1 / FRAMES_PER_SECOND, trio.current_time())
                await trio.sleep_until(due)


@contextmanager
def other_server(name: str) -> Iterator[Server]:
    """One of `OTHER_SERVERS`, from the environment of scripts/bench."""
    modules = BENCH / "node" / "node_modules"
    bun = next(iter(modules.glob("@oven/bun-*/bin/bun")), Path("bun"))
    commands = {
        "bun": [str(bun), str(PEERS / "bun_publish.js")],
        "ws": ["node", str(PEERS / "node_ws.js")],
        "websockets": [str(BENCH / "bin" / "python"), str(PEERS / "websockets_broadcast.py")],
    }
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with subprocess.Popen(
        [*commands[name], str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NODE_PATH": str(modules)},
    ) as process:
        try:
            assert process.stdout is not None
            if "listening" not in process.stdout.readline():
                raise SystemExit(f"{name} did not start")
            yield Server(port, is_relay=False)
        finally:
            process.kill()


def why_left_out(name: str, before: Path | None) -> str | None:
    """Why a server is not measured; None where it is."""
    if name == KERNEL:
        return why_not()
    if name == BEFORE:
        return None if before is not None else "--before names no other checkout"
    if name in OTHER_SERVERS and not (BENCH / "node" / "node_modules" / "ws").exists():
        return "./scripts/bench would have to install it"
    return None


def measure(name: str, seconds: float, before: Path | None) -> list[Row]:
    """All links of one server; `NoNamespaces`."""
    if before is not None and name == BEFORE:
        return measure_before(before, seconds)
    cases: Sequence[Case] = CASES
    with ExitStack() as stack:
        if name in OTHER_SERVERS:
            server = stack.enter_context(other_server(name))
            cases = [case for case in CASES if case.client == "plain"]
        else:
            namespaces = None
            if name == KERNEL:
                namespaces = stack.enter_context(open_namespaces())
            target = stack.enter_context(
                running_relay()
                if namespaces is None
                else running_relay(prefix=prefix(namespaces.server), bind="0.0.0.0:0")
            )
            server = Server(target.port, target.token, namespaces=namespaces)
        measurement = Measurement(server, cases, seconds)
        trio.run(measurement.run)
    return rows_of(
        name,
        measurement.arrivals,
        began=measurement.began,
        seconds=seconds,
        megabit_second=FRAME_BYTES / MEGABIT,
        round_trip=2 * ONE_WAY_SECONDS,
    )


def measure_before(checkout: Path, seconds: float) -> list[Row]:
    """relay of another checkout, server and clients, measured by this script."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"no {python}: run ./scripts/test -k nothing in {checkout}")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="relay-figures-") as folder:
        rows = Path(folder, "rows.json")
        subprocess.run(
            [python, Path(__file__), str(seconds), rows], cwd=checkout, env=environment, check=True
        )
        measured = msgspec.json.decode(rows.read_bytes(), type=list[Row])
    return [msgspec.structs.replace(row, server=BEFORE) for row in measured]


def compare(seconds: float, names: Sequence[str], before: Path | None) -> list[Row]:
    """Measure servers one after the other, and show them."""
    rows: list[Row] = []
    for name in names or SERVERS:
        reason = why_left_out(name, before)
        if reason is None:
            try:
                rows += measure(name, seconds, before)
            except NoNamespaces as failure:
                reason = str(failure)
        if reason is not None:
            print(f"left out: {name}: {reason}", flush=True)
    if rows:
        show(rows, seconds)
    return rows


def main() -> None:
    """Be what another checkout measures itself with."""
    seconds, out = float(sys.argv[1]), Path(sys.argv[2])
    if not Path(relay.__file__).is_relative_to(Path.cwd()):
        raise SystemExit(f"this would not measure {Path.cwd()} but {relay.__file__}")
    out.write_bytes(msgspec.json.encode(measure("relay", seconds, None)))


if __name__ == "__main__":
    main()
