"""Simulates the network of one connection in user space: bandwidth, delay, jitter, stalls, cuts.

No more bytes are read than the simulated link carries, so that the relay sees a slow network, not
a slow reader.
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

from relay.client.shaping import BUCKET_SIZE, TokenBucket
from relay.load.scenario.groups import Network

MAX_CHUNKS_IN_FLIGHT = 64
"""Reads or writes that may be in flight in each direction."""
SHAPED_READ_BYTES = 64 * 1024
FLUSH_TIMEOUT = 0.5
LINGER_RESET = struct.pack("ii", 1, 0)


def is_plain(network: Network) -> bool:
    """Whether the network is perfect, so that nothing needs to be simulated."""
    return network == Network()


@asynccontextmanager
async def open_network(
    stream: trio.abc.Stream, network: Callable[[], Network], random: Random
) -> AsyncIterator[ShapedLink]:
    """Put a network in front of a connected stream. `network` is asked again for each chunk."""
    link = ShapedLink(stream, network, random)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.carry_in)
            nursery.start_soon(link.carry_out)
            nursery.start_soon(link.cut_off)
            try:
                yield link
            finally:
                with trio.move_on_after(FLUSH_TIMEOUT + network().delay, shield=True):
                    await link.flush()
                nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


@define(eq=False)
class ShapedLink(trio.abc.Stream):
    """The client's end of a shaped connection."""

    _stream: trio.abc.Stream
    _network: Callable[[], Network]
    _random: Random
    _buckets: dict[str, TokenBucket] = field(factory=dict)
    _stall_phase: float = 0.0
    _broken: bool = False
    _in_send: trio.MemorySendChannel[tuple[float, bytes]] = field(init=False)
    _in: trio.MemoryReceiveChannel[tuple[float, bytes]] = field(init=False)
    _out: trio.MemorySendChannel[tuple[float, bytes]] = field(init=False)
    _out_receive: trio.MemoryReceiveChannel[tuple[float, bytes]] = field(init=False)
    _flushed: trio.Event = field(factory=trio.Event)
    _rest: bytes = b""
    was_cut: bool = False
    _receiving: trio.CancelScope = field(factory=trio.CancelScope)
    """Is cancelled when the link is cut."""

    def __attrs_post_init__(self) -> None:
        self._in_send, self._in = trio.open_memory_channel[tuple[float, bytes]](
            MAX_CHUNKS_IN_FLIGHT
        )
        self._out, self._out_receive = trio.open_memory_channel[tuple[float, bytes]](
            MAX_CHUNKS_IN_FLIGHT
        )
        every = self._network().stall_every
        self._stall_phase = trio.current_time() + self._random.random() * (every or 0)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._rest:
            try:
                due, data = await self._in.receive()
            except trio.EndOfChannel:
                return b""
            await trio.sleep_until(due)
            self._rest = data
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes or len(self._rest) :]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._broken:
            raise trio.BrokenResourceError
        try:
            await self._out.send((self._due(), bytes(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise trio.BrokenResourceError from None

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Stop sending. `open_network` flushes and closes the stream below."""
        self._broken = True
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Wait until everything sent has left."""
        self._out.close()
        await self._flushed.wait()

    def cut(self) -> None:
        """Break the connection, as a lost radio link does."""
        self._broken = self.was_cut = True
        self._receiving.cancel()
        if isinstance(self._stream, trio.SocketStream):
            _reset(self._stream)

    async def carry_in(self) -> None:
        last = 0.0
        with self._in_send, self._receiving:
            while True:
                await self._wait_for_stall()
                bucket = self._bucket("in", self._network().bandwidth)
                try:
                    data = await self._stream.receive_some(
                        bucket.size if bucket else SHAPED_READ_BYTES
                    )
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                if not data:
                    return
                if bucket:
                    await bucket.take(len(data))
                last = max(last, self._due())
                await self._in_send.send((last, bytes(data)))

    async def carry_out(self) -> None:
        with self._out_receive:
            last = 0.0
            async for due, data in self._out_receive:
                last = max(last, due)
                await trio.sleep_until(last)
                for start in range(0, len(data), BUCKET_SIZE):
                    piece = data[start : start + BUCKET_SIZE]
                    await self._wait_for_stall()
                    bucket = self._bucket("out", self._network().upload)
                    if bucket:
                        await bucket.take(len(piece))
                    else:
                        piece = data[start:]
                    try:
                        await self._stream.send_all(piece)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self._broken = True
                        self._flushed.set()
                        return
                    if not bucket:
                        break
        self._flushed.set()

    async def cut_off(self) -> None:
        every = self._network().cut_every
        if every is not None:
            await trio.sleep(self._random.expovariate(1 / every))
            self.cut()

    def _due(self) -> float:
        network = self._network()
        return trio.current_time() + network.delay + self._random.random() * network.jitter

    def _bucket(self, direction: str, bits_per_second: float | None) -> TokenBucket | None:
        if bits_per_second is None:
            return None
        found = self._buckets.get(direction)
        if found is None:
            found = self._buckets[direction] = TokenBucket(bits_per_second / 8)
        found.rate = bits_per_second / 8
        return found

    async def _wait_for_stall(self) -> None:
        network = self._network()
        if network.stall_every is None:
            return
        since = trio.current_time() - self._stall_phase
        into = math.fmod(since, network.stall_every)
        if since >= 0 and into < network.stall_for:
            await trio.sleep(network.stall_for - into)


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
