"""Simulates the network of one connection in user space: bandwidth, delay, jitter, stalls, cuts.

Without a queue, no more bytes are read than the simulated link carries, so that the relay sees a
slow network, not a slow reader. With one, the relay sees a fast network until the queue is full.
"""

from __future__ import annotations

import math
import socket as sockets
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random

import trio
from attrs import define, field

from relay.load.actors.network.bottleneck import Bottleneck, Capacity
from relay.load.scenario.groups import Network

SHAPED_READ_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 64 * 1024
"""Queue of an upload whose network names none: what the kernel of a phone holds."""
READ_AHEAD_BYTES = 4096
READ_AHEAD_SECONDS = 0.01
"""Queue of a download whose network names none: the larger of the two."""
FLUSH_TIMEOUT = 0.5
LINGER_RESET = struct.pack("ii", 1, 0)
TICK = 1e-6
"""Seconds by which changes come early, so that rounding does not hold them back."""

NetworkAt = Callable[[float], tuple[Network, float]]
"""The network at a time of Trio's clock, and when another one begins."""


def is_plain(network: Network) -> bool:
    """Whether the network is perfect, so that nothing needs to be simulated."""
    return network == Network()


@asynccontextmanager
async def open_network(
    stream: trio.abc.Stream, network_at: NetworkAt, random: Random
) -> AsyncIterator[ShapedLink]:
    """Put a network in front of a connected stream."""
    link = ShapedLink(stream, network_at, random)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.carry_in)
            nursery.start_soon(link.carry_out)
            nursery.start_soon(link.down.run)
            nursery.start_soon(link.up.run)
            nursery.start_soon(link.cut_off)
            try:
                yield link
            finally:
                with trio.move_on_after(FLUSH_TIMEOUT + link.network.delay, shield=True):
                    await link.flush()
                nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


@define(eq=False)
class ShapedLink(trio.abc.Stream):
    """The client's end of a shaped connection."""

    _stream: trio.abc.Stream
    _network_at: NetworkAt
    _random: Random
    down: Bottleneck = field(init=False)
    up: Bottleneck = field(init=False)
    _stall_phase: float = 0.0
    _broken: bool = False
    _flushed: trio.Event = field(factory=trio.Event)
    _rest: bytes = b""
    was_cut: bool = False
    _receiving: trio.CancelScope = field(factory=trio.CancelScope)
    """Is cancelled when the link is cut."""

    def __attrs_post_init__(self) -> None:
        self.down = Bottleneck(self._download, self._download_depth, self._delay)
        self.up = Bottleneck(self._upload, self._upload_depth, self._delay)
        every = self.network.stall_every
        self._stall_phase = trio.current_time() + self._random.random() * (every or 0)

    @property
    def network(self) -> Network:
        return self._network_at(trio.current_time() + TICK)[0]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._rest:
            self._rest = await self.down.get()
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes or len(self._rest) :]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while rest:
            if self._broken:
                raise trio.BrokenResourceError
            room = await self.up.room()
            self.up.put(rest[:room])
            rest = rest[room:]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Stop sending. `open_network` flushes and closes the stream below."""
        self._broken = True
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Wait until everything sent has left."""
        self.up.end()
        await self._flushed.wait()

    def cut(self) -> None:
        """Break the connection, as a lost radio link does."""
        self._broken = self.was_cut = True
        self._receiving.cancel()
        self.down.break_off()
        self.up.break_off()
        if isinstance(self._stream, trio.SocketStream):
            _reset(self._stream)

    async def carry_in(self) -> None:
        with self._receiving, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                room = min(SHAPED_READ_BYTES, await self.down.room())
                data = await self._stream.receive_some(room)
                if not data:
                    break
                self.down.put(bytes(data))
        self.down.end()

    async def carry_out(self) -> None:
        try:
            while data := await self.up.get():
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = True
            self.up.break_off()
        self._flushed.set()

    async def cut_off(self) -> None:
        every = self.network.cut_every
        if every is not None:
            await trio.sleep(self._random.expovariate(1 / every))
            self.cut()

    def _delay(self) -> float:
        network = self.network
        return network.delay + self._random.random() * network.jitter

    def _download_depth(self) -> int:
        network = self.network
        if network.queue is not None:
            return network.queue
        if network.bandwidth is None:
            return SHAPED_READ_BYTES
        return max(READ_AHEAD_BYTES, int(network.bandwidth / 8 * READ_AHEAD_SECONDS))

    def _upload_depth(self) -> int:
        return self.network.upload_queue or SEND_BUFFER_BYTES

    def _download(self, at: float) -> Capacity:
        network, until = self._network_at(at + TICK)
        return self._stalled(network, network.bandwidth, at, until)

    def _upload(self, at: float) -> Capacity:
        network, until = self._network_at(at + TICK)
        return self._stalled(network, network.upload, at, until)

    def _stalled(
        self, network: Network, bits_per_second: float | None, at: float, until: float
    ) -> Capacity:
        """The capacity at a time, with the stalls of the network."""
        rate = None if bits_per_second is None else bits_per_second / 8
        if network.stall_every is None:
            return Capacity(rate, until)
        since = at + TICK - self._stall_phase
        if since < 0:
            return Capacity(rate, min(until, self._stall_phase))
        begun = at + TICK - math.fmod(since, network.stall_every)
        if at + TICK < begun + network.stall_for:
            return Capacity(0.0, min(until, begun + network.stall_for))
        return Capacity(rate, min(until, begun + network.stall_every))


def cut(stream: trio.abc.Stream) -> None:
    """Break a connection without a goodbye."""
    stream = _below_tls(stream)
    if isinstance(stream, ShapedLink):
        stream.cut()
    elif isinstance(stream, trio.SocketStream):
        _reset(stream)


def was_cut(stream: trio.abc.Stream) -> bool:
    """Whether the simulated network cut the connection."""
    stream = _below_tls(stream)
    return isinstance(stream, ShapedLink) and stream.was_cut


def _below_tls(stream: trio.abc.Stream) -> trio.abc.Stream:
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


def _reset(stream: trio.SocketStream) -> None:
    """Close a TCP connection with RST."""
    with suppress(OSError):
        stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, LINGER_RESET)
    stream.socket.close()
