"""Gives generated hostile input to the real connection code, over memory links.

An input is one message, one run of raw bytes or one request head, handed to a connection. A round
is a relay of its own with some clients at a time on the same few streams; its seed repeats it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import msgpack
import msgspec
import structlog.testing
import trio
from attrs import define, field

from relay.protocol.endings import Ending
from relay.transport.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.unit.hostile import Hostile, masked_frame
from tests.unit.memory import ANN, BOB, SENTRY, SIZE, MemoryLink, MemoryRelay, link_pair, open_relay

UPGRADE = (
    "GET /streams/register HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
STREAMS = ("a", "b", "c:1")
SERVER_TYPES = {
    *("video-frame", "alert", "status", "success", "error", "notice", "part", "progress")
}
CASES, AT_ONCE = 100, 6
"""Clients in a round, and at a time."""
LONGEST = 2000.0
"""Virtual seconds within which every connection must have ended."""


class Failed(Exception):
    """Something happened that must not."""


OWNERS_OF_TOKENS = {ANN: "ann", BOB: "bob", SENTRY: "sentry"}


def _shows(entry: Mapping[str, Any], token: str, owner: str) -> bool:
    """Whether a log entry shows a token. Another user may have chosen it as a stream id."""
    of_owner = owner in (entry.get("user_id"), entry.get("service"))
    shown = [value for name, value in entry.items() if of_owner or name != "stream_id"]
    return token in repr(shown)


async def run_round(seed: str) -> int:
    """Play one round and check what it left behind; returns how many inputs it had."""
    inputs = 0

    async def play(relay: MemoryRelay, number: int) -> None:
        nonlocal inputs
        async with places:
            case = Case(relay, Random(f"{seed}/{number}"))
            await case.play()
            inputs += case.inputs

    places = trio.CapacityLimiter(AT_ONCE)
    with structlog.testing.capture_logs() as logs:
        async with open_relay() as relay:
            async with trio.open_nursery() as cases:
                for number in range(CASES):
                    cases.start_soon(play, relay, number)
            await trio.sleep(LONGEST)
            _check_rest(relay)
    for entry in logs:
        text = repr(entry)
        if entry["event"] == "connection failed":
            raise Failed(f"a bug ended a connection: {text}")
        if any(_shows(entry, token, name) for token, name in OWNERS_OF_TOKENS.items()):
            raise Failed(f"a token was logged: {text}")
    return inputs


def _check_rest(relay: MemoryRelay) -> None:
    """Check that clients that are gone left nothing behind."""
    ledger = relay.hub.ledger()
    left = {
        "connections": relay.metrics.connections,
        "authenticated": relay.metrics.authenticated,
        "bytes half received": relay.budget.reserved,
        "streams": sum(msgspec.structs.astuple(relay.hub.count())),
        "waiting frames": ledger.waiting,
        "frames unaccounted for": ledger.accepted - ledger.written - sum(ledger.dropped.values()),
        "failures": relay.metrics.endings[Ending.INTERNAL_ERROR],
    }
    if any(left.values()):
        raise Failed(f"left behind: {left}")


@define(eq=False)
class Case:
    """One client, from its first byte to its last."""

    relay: MemoryRelay
    random: Random
    inputs: int = 0
    binary: bool = False
    odd_head: bool = False
    """Whether it sends a damaged request head and nothing more."""
    link: MemoryLink = field(init=False)
    listener: Listener = field(init=False)
    hostile: Hostile = field(init=False)

    async def play(self) -> None:
        random = self.random
        self.odd_head = random.random() < 0.1
        self.binary = not self.odd_head and random.random() < 0.4
        self.hostile = Hostile(random, STREAMS)
        self.listener = Listener(self.binary)
        server_end, self.link = link_pair(random.choice([300, 8192, SIZE]))
        connection = self.relay.accept(server_end)
        with trio.move_on_after(LONGEST) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                with suppress(OSError, trio.ClosedResourceError):  # the server has hung up
                    await self._speak()
        if patience.cancelled_caught:
            raise Failed(f"a connection did not end: {connection}")

    async def _speak(self) -> None:
        random = self.random
        if self.odd_head:
            await self._input(self.hostile.head(UPGRADE + "\r\n"))
        else:
            offer = "Sec-WebSocket-Protocol: relay.v1.msgpack\r\n" if self.binary else ""
            await self._send(f"{UPGRADE}{offer}\r\n".encode())
            if random.random() < 0.98:  # too early is a breach
                await self.listener.upgraded.wait()
            if random.random() < 0.9:
                await self._log_in()
            for _ in range(random.randrange(200)):
                raw = random.random() < 0.01
                await self._input(self.hostile.raw_bytes() if raw else self._message())
        await self._leave()

    async def _log_in(self) -> None:
        token = self.random.choice([ANN, ANN, BOB, SENTRY])
        stream = self.random.choice(STREAMS)
        parts = self.random.choice([{}, {"parts": True, "progressInterval": 1}])
        await self._say({"type": "auth", "token": token, **parts})
        if self.random.random() < 0.5:
            await self._say({"type": "register", "streamId": stream})
        else:
            terms = self.hostile.terms()
            consumes = ["video-frame", "alert"]
            request = {"type": "subscribe", "streamId": stream, "consumes": consumes}
            await self._say(request | terms)

    async def _leave(self) -> None:
        match self.random.randrange(4):
            case 0:
                await self._send(masked_frame(CLOSE, b"\x03\xe8"))
            case 1:
                self.link.outgoing.end()  # as a FIN does
            case 2:
                self.link.reset()
            case _:
                # Silent until the server closes, which it does not while there are frames to send.
                await trio.sleep(300)
                self.link.outgoing.end()

    def _message(self) -> bytes:
        """A message on the wire, whole or in fragments."""
        payload = self._encode(self.hostile.message())
        if self.random.random() < 0.05:
            payload = self.hostile.damaged(payload)
        kind = BINARY if self.binary != (self.random.random() < 0.01) else TEXT
        if self.random.random() < 0.9:
            return masked_frame(kind, payload)
        cut = self.random.randrange(len(payload) + 1)
        between = masked_frame(self.random.choice([PING, PONG])) * self.random.randrange(2)
        first = masked_frame(kind, payload[:cut], final=False)
        return first + between + masked_frame(CONTINUATION, payload[cut:])

    def _encode(self, message: Any) -> bytes:
        encode: Callable[[Any], Any] = msgpack.packb if self.binary else json.dumps
        try:
            encoded = encode(message)
        except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
            encoded = encode({"type": "streams"})
        if isinstance(encoded, str):
            return encoded.encode("utf-8", "surrogatepass")
        return bytes(encoded)

    async def _say(self, message: dict[str, Any]) -> None:
        await self._send(masked_frame(BINARY if self.binary else TEXT, self._encode(message)))

    async def _input(self, data: bytes) -> None:
        self.inputs += 1
        while data and self.random.random() < 0.2:
            cut = self.random.randrange(len(data) + 1)
            await self._send(data[:cut])
            await trio.sleep(self.random.choice([0, 0, 1]))
            data = data[cut:]
        await self._send(data)
        if self.random.random() < 0.02:
            await trio.sleep(self.random.choice([1, 7, 70]))

    async def _send(self, data: bytes) -> None:
        while data:
            await self.link.wait_writable()
            data = data[self.link.send(data) :]

    async def _listen(self) -> None:
        """Read what the server sends, at times slowly, and check each message."""
        slow = self.random.random() < 0.2
        buffer = memoryview(bytearray(SIZE))
        try:
            while True:
                await self.link.wait_readable()
                count = self.link.recv_into(buffer)
                if not count:
                    return
                self.listener.receive(bytes(buffer[:count]))
                if slow:
                    await trio.sleep(0.5)
        except (OSError, trio.ClosedResourceError):
            return
        finally:
            self.link.close()  # a write that still waits fails


@define(eq=False)
class Listener:
    """Reads what a server sends and checks it against the protocol."""

    binary: bool
    _buffer: bytes = b""
    upgraded: trio.Event = field(factory=trio.Event)
    _closed: bool = False
    _fragments: bytes | None = None
    """Of a message whose end has not come."""
    _opcode: int = TEXT
    """Of that message."""

    def receive(self, data: bytes) -> None:
        self._buffer += data
        if not self.upgraded.is_set():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._buffer = b""
                return
            self._buffer = rest
            self.upgraded.set()
        for final, opcode, payload in self._frames():
            if self._closed:
                raise Failed(f"something follows the Close: {opcode} {payload!r}")
            if opcode == CLOSE:
                self._closed = True
            elif opcode in (TEXT, BINARY, CONTINUATION):
                self._join(final, opcode, payload)
            elif opcode not in (PING, PONG):
                raise Failed(f"an unknown opcode: {opcode}")

    def _join(self, final: bool, opcode: int, payload: bytes) -> None:
        if (opcode == CONTINUATION) != (self._fragments is not None):
            raise Failed(f"a fragment out of place: {opcode} {payload[:20]!r}")
        if opcode != CONTINUATION:
            self._opcode, self._fragments = opcode, b""
        whole = (self._fragments or b"") + payload
        self._fragments = None if final else whole
        if final:
            self._look_at(self._opcode, whole)

    def _frames(self) -> Iterator[tuple[bool, int, bytes]]:
        while len(self._buffer) >= 2:
            first, second = self._buffer[:2]
            cut_control = first & 15 >= CLOSE and not first & 0x80
            if first & 0x70 or cut_control or second & 0x80:
                raise Failed(f"not a frame of a server: {self._buffer[:20]!r}")
            header = {126: 4, 127: 10}.get(second, 2)
            if len(self._buffer) < header:
                return
            size = int.from_bytes(self._buffer[2:header], "big") if header > 2 else second
            if len(self._buffer) < header + size:
                return
            payload = self._buffer[header : header + size]
            self._buffer = self._buffer[header + size :]
            yield bool(first & 0x80), first & 15, payload

    def _look_at(self, opcode: int, payload: bytes) -> None:
        if (opcode == BINARY) != self.binary:
            raise Failed(f"a message in the other encoding: {payload!r}")
        try:
            message = msgpack.unpackb(payload) if self.binary else json.loads(payload)
        except ValueError as problem:
            raise Failed(f"an unreadable message: {payload!r}") from problem
        if message.get("type") not in SERVER_TYPES:
            raise Failed(f"an unknown message: {message}")


def objects() -> int:
    """Return the number of objects, which shows whether it grows."""
    gc.collect()
    return len(gc.get_objects())


@contextmanager
def same_turns(seed: str) -> Iterator[None]:
    """Schedule Trio's tasks in an order that the seed repeats."""
    run: Any = trio._core._run
    before, run._ALLOW_DETERMINISTIC_SCHEDULING = run._ALLOW_DETERMINISTIC_SCHEDULING, True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before
