"""The network of one connection, as bad as a scenario wants it, without root. Floor 6.

Bytes wait here as they would under way: no more come in than the link carries, so that the relay
sees a slow network and not a slow reader.
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
from relay.load.groups import Network

CHUNKS = 64
"""So many reads or writes may be under way each way."""
READ_SIZE = 64 * 1024
FLUSH_SECONDS = 0.5
RESET = struct.pack("ii", 1, 0)


def is_plain(network: Network) -> bool:
    """Whether a connection needs nothing of this."""
    return network == Network()


@asynccontextmanager
async def open_network(
    stream: trio.abc.Stream, network: Callable[[], Network], random: Random
) -> AsyncIterator[ShapedLink]:
    """Put the network before a connected stream; what `network` returns may change meanwhile."""
    link = ShapedLink(stream, network, random)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.carry_in)
            nursery.start_soon(link.carry_out)
            nursery.start_soon(link.cut_off)
            try:
                yield link
            finally:
                with trio.move_on_after(FLUSH_SECONDS + network().delay, shield=True):
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
    _life: trio.CancelScope = field(factory=trio.CancelScope)
    """Ends what comes in when the link is cut."""

    def __attrs_post_init__(self) -> None:
        self._in_send, self._in = trio.open_memory_channel[tuple[float, bytes]](CHUNKS)
        self._out, self._out_receive = trio.open_memory_channel[tuple[float, bytes]](CHUNKS)
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
        """What was sent is still under way: `open_network` closes what lies below."""
        self._broken = True
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Wait until what was sent has left."""
        self._out.close()
        await self._flushed.wait()

    def cut(self) -> None:
        """Tear the connection off, as a lost radio link does."""
        self._broken = self.was_cut = True
        self._life.cancel()
        if isinstance(self._stream, trio.SocketStream):
            with suppress(OSError):
                self._stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, RESET)
            self._stream.socket.close()

    async def carry_in(self) -> None:
        last = 0.0
        with self._in_send, self._life:
            while True:
                await self._wait_for_stall()
                bucket = self._bucket("in", self._network().bandwidth)
                try:
                    data = await self._stream.receive_some(bucket.size if bucket else READ_SIZE)
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

    def _bucket(self, way: str, bits_per_second: float | None) -> TokenBucket | None:
        if bits_per_second is None:
            return None
        found = self._buckets.get(way)
        if found is None:
            found = self._buckets[way] = TokenBucket(bits_per_second / 8)
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
