"""The wire between the coordinator of a run and its generators: the processes that play it.

A generator is a worker of this machine, at the other end of two pipes, or an agent on another one,
over TLS. Both get the same orders and say the same. Each message is its length in four bytes, and
MessagePack.

    coordinator   Assignment, StartSignal (again when a clock is corrected), StopSignal
    generator     GeneratorReady, UpdateMessage each second, RunDone

An agent begins with a `Greeting`, and answers each `ClockProbe` with a `ClockReading`.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec
import trio
from attrs import define, field, frozen

from relay.concurrency.exact_reads import receive_exactly
from relay.errors import RelayError
from relay.load.actors.engine import Share, StatsUpdate
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.sent_files import SentFiles
from relay.load.measures.trials import TrialResult
from relay.load.scenario.raising import Raise

WIRE_VERSION = 3
"""Grows with each change of a message, or of what a scenario means."""
MAX_WIRE_BYTES = 64 << 20
MAX_AGENT_BYTES = 32 << 20
"""Of one message of an agent; in memory it may be many times as large."""
M = TypeVar("M")
_LENGTH = struct.Struct(">I")


class BadMessage(RelayError):
    """The other side sent what is no message."""


@frozen(kw_only=True)
class Permit:
    """What an agent lets a run do; it has this from its own command line."""

    targets: frozenset[str]
    """As `HOST:PORT`."""
    max_connections: int
    """At once, over all its processes."""
    max_rate: float
    """Messages per second, likewise."""
    scripts: frozenset[str] = frozenset()
    """SHA-256 of those that it runs, in hexadecimal."""


class Assignment(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a generator has to play. Neither pipes nor TLS show others the tokens in it."""

    source: str
    """The scenario, as TOML."""
    file: str
    """Where errors say that they are."""
    raised: Raise | None = None
    """What is multiplied in it."""
    run: str
    endpoint: Endpoint
    shares: list[Share]
    """One for each process of the generator."""
    process: int = 0
    """Which of the shares a process plays; an agent fills this in."""
    folder: str | None = None
    """Where a worker finds the scenario's files; an agent has `files` alone."""
    files: SentFiles | None = None
    permit: Permit | None = None
    """An agent fills this in, whatever it was sent."""


class StartSignal(msgspec.Struct, frozen=True, tag=True):
    """The time to start, by the monotonic clock of the generator's machine."""

    start: float


class StopSignal(msgspec.Struct, frozen=True, tag=True):
    """Send the last update, and end."""


class ClockProbe(msgspec.Struct, frozen=True, tag=True):
    """Asks an agent for its clock; it also shows that the coordinator is still there."""

    number: int


class SelfTestOrder(msgspec.Struct, frozen=True, tag=True):
    """Measure what the machine can do, in place of a run."""


class Greeting(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What an agent is."""

    version: str
    """Of relay."""
    machine: str
    processes: int
    refusal: str | None = None
    """Why it takes no run now."""


class GeneratorReady(msgspec.Struct, frozen=True, tag=True):
    """All actors are made."""


class UpdateMessage(msgspec.Struct, frozen=True, tag=True):
    update: StatsUpdate
    process: int = 0


class ClockReading(msgspec.Struct, frozen=True, tag=True):
    number: int
    at: float
    """By the monotonic clock of the agent's machine."""


class TrialMessage(msgspec.Struct, frozen=True, tag=True):
    trial: TrialResult


class RunDone(msgspec.Struct, frozen=True, tag=True):
    """The last message."""

    failure: str | None = None


Order = Assignment | StartSignal | StopSignal | ClockProbe | SelfTestOrder
Statement = Greeting | GeneratorReady | UpdateMessage | ClockReading | TrialMessage | RunDone

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Order)
_statements = msgspec.msgpack.Decoder(Statement)


def encode_message(message: Order | Statement) -> bytes:
    """With its length; `BadMessage` if it is too large."""
    content = _encoder.encode(message)
    if len(content) > MAX_WIRE_BYTES:
        size, most = len(content) >> 20, MAX_WIRE_BYTES >> 20
        raise BadMessage(f"a message of {size} MiB is too large: {most} MiB at most")
    return _LENGTH.pack(len(content)) + content


@define(eq=False)
class MessagePipe:
    """Messages over two byte streams, or over both directions of one."""

    _incoming: trio.abc.ReceiveStream
    _outgoing: trio.abc.SendStream
    _sending: trio.Lock = field(factory=trio.Lock)

    async def send(self, message: Order | Statement) -> None:
        """Several tasks may send. `trio.BrokenResourceError`, `trio.ClosedResourceError`."""
        data = encode_message(message)
        async with self._sending:
            await self._outgoing.send_all(data)

    async def order(self, max_bytes: int = MAX_WIRE_BYTES) -> Order | None:
        """The next order; None at the end. `BadMessage`."""
        content = await self._receive(max_bytes)
        return None if content is None else _decode(_orders, content)

    async def statement(self, max_bytes: int = MAX_WIRE_BYTES) -> Statement | None:
        """The next of what a generator says; None at the end. `BadMessage`."""
        content = await self._receive(max_bytes)
        return None if content is None else _decode(_statements, content)

    async def _receive(self, max_bytes: int) -> bytes | None:
        try:
            (length,) = _LENGTH.unpack(await receive_exactly(self._incoming, _LENGTH.size))
            if length > max_bytes:
                raise BadMessage("it sent what is no message, or one that is too large")
            return await receive_exactly(self._incoming, length)
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            return None


def _decode(decoder: msgspec.msgpack.Decoder[M], content: bytes) -> M:
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise BadMessage("it sent a message that cannot be read") from None
