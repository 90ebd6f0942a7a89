"""Many who guess tokens from many addresses, and many who say nothing."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import trio

from tests.integration.raw import REQUEST, message

ADDRESSES = 2000
CODES = ("AUTH_FAILED", "RATE_LIMITED", "TOO_MANY_CONNECTIONS", "AUTH_UNAVAILABLE")


def address(number: int) -> str:
    """One of the many addresses of the loopback interface (on Linux), but not 127.0.0.1."""
    number %= ADDRESSES
    return f"127.{1 + number // 250}.0.{1 + number % 250}"


async def connect(port: int, source: str) -> trio.SocketStream:
    calling = trio.socket.socket()
    try:
        calling.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await calling.bind((source, 0))
        await calling.connect(("127.0.0.1", port))
    except BaseException:
        calling.close()
        raise
    return trio.SocketStream(calling)


async def guess(port: int, source: str, *, rude: bool) -> str:
    """Try a token that nobody has; returns how it ended: a status, or a code of the protocol."""
    try:
        async with await connect(port, source) as stream:
            await stream.send_all(REQUEST)
            answer = b""
            while b"\r\n\r\n" not in answer:
                received = await stream.receive_some()
                if not received:
                    return "hung up"
                answer += received
            status = answer.split()[1].decode()
            if status != "101":
                return status
            await stream.send_all(message(type="auth", token=os.urandom(16).hex()))
            while received := await stream.receive_some():
                answer += received
                if not rude and any(code.encode() in answer for code in CODES):
                    break  # else it waits until the relay has had enough
    except (OSError, trio.BrokenResourceError):
        return "hung up"
    for code in CODES:
        if code.encode() in answer:
            return code
    return "hung up"


async def keep_silent(port: int, source: str) -> None:
    """Connect and say nothing, again whenever that ends."""
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            async with await connect(port, source) as stream:
                while await stream.receive_some():
                    pass
        await trio.sleep(0.5)


async def flood(
    port: int,
    guessers: int,
    silent: int,
    enough: Callable[[Counter[str]], bool],
    ended: Counter[str] | None = None,
) -> Counter[str]:
    """So many guess at a time, each from the next address, and so many are silent; counts how the
    guesses ended, in `ended` if that is given."""
    ended = Counter() if ended is None else ended
    started = 0

    async def go_on_guessing() -> None:
        nonlocal started
        while not enough(ended):
            started += 1
            rude = started % 10 == 0
            ended[await guess(port, address(started), rude=rude)] += 1

    async with trio.open_nursery() as nursery:
        for number in range(silent):
            nursery.start_soon(keep_silent, port, address(number))
        async with trio.open_nursery() as guessing:
            for _ in range(guessers):
                guessing.start_soon(go_on_guessing)
        nursery.cancel_scope.cancel()
    return ended
