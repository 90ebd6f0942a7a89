"""A stream with the bit rate of a slow network, and the meter that shows what it carried.

Give `SHAPED_RECEIVE_BUFFER` to the client as well, so that the kernel does not read ahead what the
bucket holds back.
"""

from __future__ import annotations

import trio
from attrs import define, field

BUCKET_SIZE = 4096
"""Bytes that may come at once; at 1 Mbit/s that many take 33 ms."""

SHAPED_RECEIVE_BUFFER = 16 * 1024
"""Bytes."""


@define(eq=False)
class Meter:
    """The bytes that went through a stream, WebSocket framing included."""

    received: int = 0
    sent: int = 0


@define(eq=False)
class TokenBucket:
    """Lets `rate` bytes per second through, at most `size` of them at once."""

    rate: float
    size: int = BUCKET_SIZE
    _tokens: float = field(init=False)
    _filled_at: float = field(factory=trio.current_time, init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.size

    async def take(self, amount: int) -> None:
        """Wait until there are `amount` tokens (`size` at most) and take them."""
        now = trio.current_time()
        self._tokens = min(self.size, self._tokens + (now - self._filled_at) * self.rate) - amount
        self._filled_at = now
        await trio.sleep(max(0, -self._tokens / self.rate))


@define(eq=False)
class ShapedStream(trio.abc.Stream):
    """A stream that counts what it carries and receives no faster than its bucket allows."""

    _stream: trio.abc.Stream
    meter: Meter
    bucket: TokenBucket | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)
        self.meter.sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.bucket:
            max_bytes = min(max_bytes or self.bucket.size, self.bucket.size)
        data = await self._stream.receive_some(max_bytes)
        if self.bucket:
            await self.bucket.take(len(data))
        self.meter.received += len(data)
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
