"""Many clients that are as plain as can be, so that a thousand of them fit beside a relay."""

from __future__ import annotations

import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import trio
from attrs import define, field

from tests.integration.raw import CLOSE, REQUEST, frame, message
from tests.integration.relay_process import PATIENCE, RelayProcess

AT_ONCE = 50
"""Connections that are made at a time."""
RESTARTING = (
    b'"SERVER_RESTARTING"',
    b"\x88"
    + bytes([2 + len("server restarting")])
    + struct.pack("!H", 4012)
    + b"server restarting",
)
"""The notice, and the Close, as they travel."""


@define(eq=False)
class One:
    """One client; what it hears it keeps."""

    stream: trio.SocketStream
    heard: bytearray = field(factory=bytearray)

    async def until(self, mark: bytes) -> None:
        while mark not in self.heard:
            received = await self.stream.receive_some()
            assert received, f"the end came before {mark!r}: {bytes(self.heard[-200:])!r}"
            self.heard += received

    async def authenticate(self, token: str) -> None:
        await self.stream.send_all(REQUEST)
        await self.until(b"\r\n\r\n")
        await self.stream.send_all(message(type="auth", token=token))
        await self.until(b'"AUTHENTICATED"')

    async def hear_goodbye(self) -> bool:
        """Whether it was told that the relay restarts; answers the Close, as a client should."""
        with suppress(AssertionError, trio.BrokenResourceError):
            await self.until(RESTARTING[1])
            await self.stream.send_all(frame(CLOSE, struct.pack("!H", 4012)))
        return all(mark in self.heard for mark in RESTARTING)


async def connect(relay: RelayProcess, receive_buffer: int | None = None) -> One:
    calling = trio.socket.socket()
    if receive_buffer is not None:
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await calling.connect(("127.0.0.1", relay.port))
    except BaseException:
        calling.close()
        raise
    return One(trio.SocketStream(calling))


@asynccontextmanager
async def open_crowd(
    relay: RelayProcess,
    tokens: Sequence[str],
    *,
    receive_buffer: int | None = None,
    at_once: int = AT_ONCE,
) -> AsyncIterator[list[One]]:
    """A client for each token, authenticated, to the end of the block."""
    crowd: list[One] = []
    places = trio.CapacityLimiter(at_once)

    async def join(token: str) -> None:
        async with places:
            one = await connect(relay, receive_buffer)
            crowd.append(one)
            await one.authenticate(token)

    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for token in tokens:
                    nursery.start_soon(join, token)
        yield crowd
    finally:
        for one in crowd:
            one.stream.socket.close()


@contextmanager
def many_files(number: int) -> Iterator[None]:
    """May have so many files open within the block, if the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
