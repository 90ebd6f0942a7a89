"""Reading a known number of bytes."""

from __future__ import annotations

import trio


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """Return the next `count` bytes, and leave what follows in the stream.

    Raises `EOFError` when the stream ends before, and what its `receive_some` raises.
    """
    received = bytearray()
    while len(received) < count:
        more = await stream.receive_some(count - len(received))
        if not more:
            raise EOFError(f"the stream ended after {len(received)} of {count} bytes")
        received += more
    return bytes(received)
