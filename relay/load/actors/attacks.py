"""What hostile clients do, by kind. Each attack is one connection, or two that belong together."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from itertools import cycle
from random import Random
from urllib.parse import urlsplit

import msgspec
import trio
from attrs import define

from relay.client import DialFailed, ServerError
from relay.client.errors import Closed
from relay.client.websocket import ABNORMAL_CLOSURE
from relay.load.actors.network.client import IncomingMessage, LoadClient
from relay.load.actors.network.shaped_link import cut
from relay.load.actors.run_context import RunContext
from relay.load.measures.stats import GroupStats
from relay.load.scenario.groups import HostileGroup
from relay.load.units import MIB
from relay.transport import wire

PINGS = 512
"""In a burst."""
PING_BURST = bytes((wire.FIN | wire.PING, wire.MASKED, 0, 0, 0, 0)) * PINGS
GARBAGE = bytes(range(256)) * 16
DEFAULT_PING_INTERVAL = 0.05
"""Seconds between two bursts of pings."""
UNREAD_INTERVAL = 1.0
"""Seconds between two requests whose answer nobody reads."""
SLOW_BYTE_INTERVAL = 1.0
"""Seconds between two bytes of a request that does not end."""
RUDE_EVERY = 10
"""Of so many guesses one waits to be thrown out."""
HALF_MESSAGE_BYTES = MIB - 1
OVERSIZED_BYTES = 1 << 30
NESTED_ARRAYS = 5_000_000
HEAVY_VALUES = 65_000
"""Values in the metadata of an alert, a byte each."""
ADDRESSES_PER_NET = 250


@define(eq=False)
class Attacker:
    """What an attack works with."""

    context: RunContext
    group: HostileGroup
    name: str
    """Name of the group."""
    number: int
    attempt: int
    """How many connections of this actor came before."""
    target: str
    random: Random
    stats: GroupStats
    client: LoadClient | None = None
    """Its last connection."""

    @property
    def stream_id(self) -> str:
        return self.context.stream_id(self.name, self.number)

    @property
    def local_address(self) -> str | None:
        """Where it comes from: each connection comes from another address."""
        if self.group.addresses == 1 or not _is_loopback(self.context.endpoint.urls[self.target]):
            return None
        number = self.number + self.attempt * self.context.timeline.most(self.name)
        return loopback_address(number % self.group.addresses)

    @asynccontextmanager
    async def connect(
        self, *, msgpack: bool = False, token: str | None = None
    ) -> AsyncIterator[LoadClient]:
        """Connect, and authenticate if there is a token."""
        async with self.context.connect(
            self.name,
            self.target,
            number=self.number,
            random=self.random,
            on_message=_ignore,
            msgpack=msgpack,
            phone=False,
            local_address=self.local_address,
        ) as client:
            self.client = client
            self.stats.counts["connect.done"] += 1
            if token is not None:
                await client.request("auth", token=token)
            yield client

    @property
    def token(self) -> str:
        return self.context.endpoint.hostile_token(self.number)

    @asynccontextmanager
    async def open_raw(self) -> AsyncIterator[tuple[trio.abc.Stream, str]]:
        """Connect, and say nothing."""
        async with self.context.open_raw(self.target, self.local_address) as opened:
            self.stats.counts["connect.done"] += 1
            yield opened

    async def send(
        self, client: LoadClient, data: bytes, *, messages: int = 1, attacks: int = 1
    ) -> None:
        """Send what no client would send; `Closed`, `LimitReached`."""
        self.context.spend(messages)
        await client.socket.send_raw(data)
        self.count(attacks)

    def count(self, number: int = 1) -> None:
        """Count what was done."""
        self.stats.counts["attacks"] += number

    def note_ending(self, what: DialFailed | ServerError | Closed | str) -> None:
        """Count how the relay answered, or ended a connection."""
        match what:
            case ServerError(code=code):
                words = code
            case DialFailed():
                words = _status(str(what)) or "not connected"
            case Closed(code=code):
                goodbye = self.client and self.client.goodbye
                words = goodbye.code if goodbye else f"closed with {code}"
            case _:
                words = what
        self.stats.note_ending(words)


Attack = Callable[[Attacker], Awaitable[None]]


async def keep_silent(attacker: Attacker) -> None:
    async with attacker.connect() as client:
        attacker.count()
        await _hear_out(client)


async def send_garbage(attacker: Attacker) -> None:
    async with attacker.connect() as client:
        await attacker.send(client, GARBAGE)
        await _hear_out(client)


async def guess_token(attacker: Attacker) -> None:
    """Try a token that nobody has; some wait until the relay has had enough."""
    async with attacker.connect() as client:
        attacker.count()
        refusal: ServerError | None = None
        try:
            await client.request("auth", token=f"{attacker.random.getrandbits(128):032x}")
        except ServerError as answer:
            refusal = answer
        if refusal is not None:
            if (attacker.number + attacker.attempt) % RUDE_EVERY == 0:
                await client.listen()
            raise refusal


async def send_half_frame(attacker: Attacker) -> None:
    """Send the beginning of a frame's header, and break the connection."""
    async with attacker.connect() as client:
        await attacker.send(client, bytes((wire.FIN | wire.TEXT, wire.MASKED | 126, 64)))
        await trio.sleep(1)
        cut(client.socket.stream)


async def send_half_request(attacker: Attacker) -> None:
    """Send a request for a WebSocket, a byte a second (slowloris)."""
    async with attacker.open_raw() as (stream, host):
        attacker.count()
        head = f"GET /streams/subscribe HTTP/1.1\r\nHost: {host}\r\nX-Slow: "
        await _send(stream, head.encode())
        while True:
            with trio.move_on_after(SLOW_BYTE_INTERVAL) as waiting:
                answer = await _receive(stream)
            if not waiting.cancelled_caught:
                attacker.stats.counts["closes"] += 1
                attacker.note_ending(_status(answer) or "hung up")
                return
            await _send(stream, b"x")


async def send_half_message(attacker: Attacker) -> None:
    """Announce nearly 1 MiB, send 15 bytes, and wait."""
    async with attacker.connect(token=attacker.token) as client:
        await attacker.send(client, _head(wire.TEXT, HALF_MESSAGE_BYTES) + b" " * 15)
        await _hear_out(client)


async def send_oversized(attacker: Attacker) -> None:
    """Announce a frame larger than any relay takes, and begin it."""
    async with attacker.connect(token=attacker.token) as client:
        await attacker.send(client, _head(wire.BINARY, OVERSIZED_BYTES) + bytes(64 * 1024))
        await _hear_out(client)


async def send_pings(attacker: Attacker) -> None:
    every = attacker.group.every
    async with attacker.connect(token=attacker.token) as client:
        async with client.listening():
            while True:
                await attacker.send(client, PING_BURST, messages=PINGS, attacks=PINGS)
                await trio.sleep(DEFAULT_PING_INTERVAL if every is None else every)
        _raise_closed(client)


async def leave_frames_unread(attacker: Attacker) -> None:
    """Subscribe to a stream of a phone, and read nothing; it is a viewer of the phone's user."""
    context, group = attacker.context, attacker.group
    phones = context.timeline.most(group.watch) if group.watch else 0
    token = context.endpoint.token(attacker.number) if phones else attacker.token
    async with attacker.connect(token=token) as client:
        attacker.count()
        if group.watch and phones:
            watched = context.stream_id(group.watch, attacker.number % phones)
            await client.request("subscribe", streamId=watched, consumes=["video-frame"])
        await trio.sleep_forever()


async def flood(attacker: Attacker) -> None:
    """Send frames of a stream of its own without pause, and read what its viewer gets."""
    token, counts = attacker.token, attacker.stats.counts
    async with (
        attacker.connect(msgpack=True, token=token) as viewer,
        attacker.connect(msgpack=True, token=token) as phone,
    ):
        await phone.request("register", streamId=attacker.stream_id)
        await viewer.request("subscribe", streamId=attacker.stream_id, consumes=["video-frame"])
        message = {"type": "video-frame", "data": bytes(attacker.group.frames)}
        unit = _masked_by_zeros(wire.BINARY, msgspec.msgpack.encode(message))
        number = max(1, MIB // len(unit))
        data = unit * number
        async with viewer.listening(), phone.listening():
            while True:
                counts["unsure"] += number
                await attacker.send(phone, data, messages=number, attacks=number)
        _raise_closed(phone)


async def send_heavy_alerts(attacker: Attacker) -> None:
    """Send alerts of 64 KiB whose metadata are very many values, as fast as they are answered."""
    counts = attacker.stats.counts
    async with attacker.connect(msgpack=True, token=attacker.token) as client:
        await client.request("register", streamId=attacker.stream_id)
        for metadata in cycle(_heavy_metadata()):
            attacker.context.spend()
            counts["alerts.sent"] += 1
            attacker.count()
            alert = {"streamId": attacker.stream_id, "severity": "low", "message": "heavy"}
            try:
                await client.request("alert", metadata=metadata, **alert)
            except ServerError as refusal:
                attacker.note_ending(refusal)
            else:
                counts["alerts.accepted"] += 1
                attacker.note_ending("accepted")
            await trio.sleep(attacker.group.every or 0)


async def send_nested_frame(attacker: Attacker) -> None:
    """Send a large frame with an unknown field full of arrays."""
    async with attacker.connect(token=attacker.token) as client:
        await attacker.send(client, _nested_frame())
        await client.read()
        attacker.note_ending(client.goodbye or "no error")


async def leave_answer_unread(attacker: Attacker) -> None:
    """Ask for many alerts over HTTP, and read nothing."""
    async with attacker.open_raw() as (stream, host):
        request = f"GET /alerts?limit=1000 HTTP/1.1\r\nHost: {host}\r\n"
        await _send(stream, f"{request}Authorization: Bearer {attacker.token}\r\n\r\n".encode())
        attacker.count()
        every = attacker.group.every
        await trio.sleep(UNREAD_INTERVAL if every is None else every)


ATTACKS: Mapping[str, Attack] = {
    "silent": keep_silent,
    "garbage": send_garbage,
    "bad-token": guess_token,
    "not-reading": leave_frames_unread,
    "half-frame": send_half_frame,
    "pings": send_pings,
    "half-request": send_half_request,
    "half-message": send_half_message,
    "oversized": send_oversized,
    "flood": flood,
    "heavy-alerts": send_heavy_alerts,
    "nested-frame": send_nested_frame,
    "unread-answers": leave_answer_unread,
}
"""By the `kind` of a group."""


def loopback_address(number: int) -> str | None:
    """One of the many addresses of the loopback interface, but not 127.0.0.1; None if it has
    no other, as on macOS."""
    if not has_many_addresses():
        return None
    return f"127.{1 + number // ADDRESSES_PER_NET}.0.{1 + number % ADDRESSES_PER_NET}"


@cache
def has_many_addresses() -> bool:
    with socket.socket() as trying:
        try:
            trying.bind(("127.1.0.1", 0))
        except OSError:
            return False
    return True


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ignore(_incoming: IncomingMessage, _size: int) -> None:
    pass


def _status(answer: str) -> str | None:
    """The status in an answer over HTTP, or in what is said of one."""
    words = answer.split()
    found = (word for word in words if word.isdecimal() and len(word) == 3)
    status = next(found, None) if "HTTP" in answer else None
    return None if status is None else f"HTTP {status}"


async def _hear_out(client: LoadClient) -> None:
    """Read until the relay ends the connection; raises `Closed`."""
    await client.listen()
    _raise_closed(client)


def _raise_closed(client: LoadClient) -> None:
    if client.socket.closed is not None:
        raise client.socket.closed


async def _send(stream: trio.abc.Stream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise Closed(ABNORMAL_CLOSURE) from None


async def _receive(stream: trio.abc.Stream) -> str:
    try:
        return (await stream.receive_some(4096)).decode(errors="replace")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return ""


def _head(opcode: int, length: int) -> bytes:
    """The head of a frame with a length of 64 bits, and a mask that changes nothing."""
    return bytes((wire.FIN | opcode, wire.MASKED | 127)) + length.to_bytes(8) + bytes(4)


def _masked_by_zeros(opcode: int, payload: bytes) -> bytes:
    head = bytearray(wire.frame(opcode, payload)[: -len(payload)])
    head[1] |= wire.MASKED
    return bytes(head) + bytes(4) + payload


@cache
def _nested_frame() -> bytes:
    many = b"[" + b"[]," * NESTED_ARRAYS + b"0]"
    payload = b'{"type":"video-frame","data":"AAAA","x":' + many + b"}"
    return _head(wire.TEXT, len(payload)) + payload


def _heavy_metadata() -> list[msgspec.Raw]:
    """Maps with a single array, of empty arrays, empty maps, zeros and empty strings."""
    head = b"\x81\xa1a\xdc" + HEAVY_VALUES.to_bytes(2)
    return [
        msgspec.Raw(head + unit * HEAVY_VALUES) for unit in (b"\x90", b"\x80", b"\x00", b"\xa0")
    ]
