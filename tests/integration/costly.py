"""One authenticated user who sends what is costly to take apart, and leaves unread what is costly
to make. Also what `scripts/figures.py hostile` measures with.

    TOKEN=… python -m tests.integration.costly PORT SECONDS

attacks a relay on this machine, and prints how often.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import trio

from tests.integration.raw import REQUEST

HALVES, READERS = 90, 20
"""Connections that send half of a message, and requests at a time whose answer nobody reads."""
MANY = b"\x81\xa1a\xdc" + struct.pack("!H", 64_000)

TEXT, BINARY = 0x81, 0x82

Attack = Callable[[int, str, Counter[str]], Awaitable[None]]


def masked(first: int, payload: bytes) -> bytes:
    """A frame whose mask is all zeros, which changes nothing."""
    return bytes((first, 0xFF)) + struct.pack("!Q", len(payload)) + bytes(4) + payload


def small(first: int, payload: bytes) -> bytes:
    return bytes((first, 0xFE)) + struct.pack("!H", len(payload)) + bytes(4) + payload


async def open_peer(port: int, token: str, *, binary: bool) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    request = REQUEST
    if binary:
        request = REQUEST[:-2] + b"Sec-WebSocket-Protocol: relay.v1.msgpack\r\n\r\n"
    await stream.send_all(request)
    while b"\r\n\r\n" not in await stream.receive_some():
        pass
    auth = {"type": "auth", "token": token, "unused": " " * 126}
    if binary:
        await stream.send_all(small(BINARY, msgspec.msgpack.encode(auth)))
    else:
        await stream.send_all(small(TEXT, msgspec.json.encode(auth)))
    await stream.receive_some()
    return stream


async def send_shapes(port: int, token: str, done: Counter[str]) -> None:
    """Send metadata of very many values, until the connection is closed for it."""
    shapes = [MANY + unit * 64_000 for unit in (b"\x90", b"\x80", b"\x00", b"\xa0")]
    fields = {"type": "alert", "streamId": "s", "severity": "low", "message": "m", "metadata": 0}
    head = msgspec.msgpack.encode(fields)[:-1]
    async with await open_peer(port, token, binary=True) as stream:
        for shape in shapes * 3:
            await stream.send_all(small(BINARY, head + shape))
            done["costly alerts"] += 1
            await stream.receive_some()


async def send_nested(port: int, token: str, done: Counter[str]) -> None:
    """Send a large frame with an unknown field full of arrays."""
    many = b"[" + b"[]," * 5_000_000 + b"0]"
    frame = masked(TEXT, b'{"type":"video-frame","data":"AAAA","x":' + many + b"}")
    async with await open_peer(port, token, binary=False) as stream:
        await stream.send_all(frame)
        done["nested frames"] += 1
        await stream.receive_some()


async def send_halves(port: int, token: str, done: Counter[str]) -> None:
    """Announce nearly 1 MiB, send 15 bytes, and wait."""
    half = b"\x81\xff" + struct.pack("!Q", (1 << 20) - 1) + bytes(4) + b" " * 15
    async with await open_peer(port, token, binary=False) as stream:
        await stream.send_all(half)
        done["half messages"] += 1
        while await stream.receive_some():
            pass


async def leave_unread(port: int, token: str, done: Counter[str]) -> None:
    """Ask for many alerts, and read nothing."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = (
            f"GET /alerts?limit=1000 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        await stream.send_all(head.encode())
        done["unread answers"] += 1
        await trio.sleep(1)


async def again_and_again(attack: Attack, port: int, token: str, done: Counter[str]) -> None:
    while True:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await attack(port, token, done)
        await trio.sleep(0.05)


async def attack(port: int, token: str, seconds: float) -> Counter[str]:
    """Attack for so long; returns how often."""
    done: Counter[str] = Counter()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for each, number in (
                (send_shapes, 2),
                (send_nested, 1),
                (send_halves, HALVES),
                (leave_unread, READERS),
            ):
                for _ in range(number):
                    nursery.start_soon(again_and_again, each, port, token, done)
    return done


if __name__ == "__main__":
    done = trio.run(attack, int(sys.argv[1]), os.environ["TOKEN"], float(sys.argv[2]))
    print(f"  what one user did: {json.dumps(done)}", flush=True)  # noqa: T201
