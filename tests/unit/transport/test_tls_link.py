"""TLS as a link, over real sockets with small buffers: partial writes, in both directions."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trustme
from attrs import frozen

from relay.transport.link import Buffer, SocketLink
from relay.transport.outlet import Outlet
from relay.transport.tls import TlsLink

AUTHORITY = trustme.CA()
SERVER = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
AUTHORITY.issue_cert("127.0.0.1").configure_cert(SERVER)
CLIENT = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT)

SMALL = 4096
"""Bytes that a socket's buffers are asked to hold; a TLS record is up to four times as long."""


@frozen
class Ends:
    link: TlsLink
    client: trio.SSLStream[trio.SocketStream]


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    """Both ends of a TLS connection, with buffers that hold little."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        theirs = trio.socket.socket()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        await theirs.connect(listener.getsockname())
        ours = listener.accept()[0]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    link = TlsLink(SocketLink(ours), SERVER)
    client = trio.SSLStream(
        trio.SocketStream(theirs), CLIENT, server_hostname="127.0.0.1", https_compatible=True
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.handshake)
            nursery.start_soon(client.do_handshake)
        # What a client leaves unread when it closes, session tickets too, resets the connection.
        await send_all(link, b"!")
        assert await client.receive_some() == b"!"
        yield Ends(link, client)
    finally:
        link.close()
        await trio.aclose_forcefully(client)


async def send_all(link: TlsLink, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[link.send(view) :]
        except BlockingIOError:
            await link.wait_writable()


async def receive(link: TlsLink, size: int) -> bytes:
    """So many bytes, or those before the end."""
    buffer, count = bytearray(size), 0
    while count < size:
        try:
            more = link.recv_into(memoryview(buffer)[count:])
        except BlockingIOError:
            await link.wait_readable()
        else:
            if not more:
                break
            count += more
    return bytes(buffer[:count])


async def rest(client: trio.SSLStream[trio.SocketStream]) -> None:
    while await client.receive_some():
        pass


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_sent_in_pieces_arrives_whole_in_both_directions(seed: int) -> None:
    chance = random.Random(seed)
    sizes = (0, 1, 100, 5000, 16_384, 16_385, 70_000, 300_000)
    down = [chance.randbytes(chance.choice(sizes)) for _ in range(15)]
    up = chance.randbytes(200_000)
    async with connected() as ends, trio.open_nursery() as nursery:

        async def send_down() -> None:
            for each in down:
                await send_all(ends.link, each)

        async def receive_up() -> None:
            assert await receive(ends.link, len(up)) == up

        nursery.start_soon(send_down)
        nursery.start_soon(receive_up)
        nursery.start_soon(ends.client.send_all, up)
        wanted, got = b"".join(down), bytearray()
        while len(got) < len(wanted):
            got += await ends.client.receive_some(chance.randrange(1, 40_000))
            if chance.random() < 0.1:
                await trio.sleep(0.002)  # so that everything on the way fills up
        assert got == wanted


async def test_frames_through_an_outlet_arrive_whole_from_several_writers() -> None:
    """Some at once, the rest behind what the kernel did not take."""
    chance = random.Random(1)
    frames = [chance.randbytes(chance.randrange(1, 60_000)) for _ in range(60)]
    async with connected() as ends, trio.open_nursery() as nursery:
        outlet = Outlet(ends.link, 30.0)
        nursery.start_soon(outlet.run)
        got, wanted = bytearray(), b"".join(frames)

        async def write() -> None:
            for frame in frames:
                await trio.sleep(chance.choice([0, 0, 0.001]))
                if not outlet.write_now(frame):
                    await outlet.send(frame)

        nursery.start_soon(write)
        while len(got) < len(wanted):
            got += await ends.client.receive_some(8192)
        assert got == wanted
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_nothing_stops_the_sending() -> None:
    async with connected() as ends:
        taken = 0
        with trio.move_on_after(0.3):
            while True:
                try:
                    taken += ends.link.send(bytes(100_000))
                except BlockingIOError:
                    await ends.link.wait_writable()
        assert taken < 1_000_000


async def test_what_the_peer_sent_before_its_end_is_received() -> None:
    async with connected() as ends:
        await ends.client.send_all(b"the last words")
        await ends.client.aclose()
        assert await receive(ends.link, 100) == b"the last words"
        assert await receive(ends.link, 100) == b""


async def test_an_end_without_the_ceremony_of_tls_is_an_end() -> None:
    async with connected() as ends:
        await ends.client.send_all(b"the last words")
        await ends.client.transport_stream.aclose()
        assert await receive(ends.link, 100) == b"the last words"
        assert await receive(ends.link, 100) == b""


async def test_closing_tells_the_peer_that_nothing_was_cut_off() -> None:
    async with connected() as ends:
        await send_all(ends.link, b"done")
        ends.link.close()
        assert await ends.client.receive_some() == b"done"
        assert await ends.client.receive_some() == b""


async def test_closing_in_the_middle_of_a_frame_does_not_look_like_its_end() -> None:
    async with connected() as ends:
        with suppress(BlockingIOError):
            while True:
                ends.link.send(bytes(100_000))
        ends.link.close()
        ends.client._https_compatible = False  # ask for the ceremony
        with pytest.raises(trio.BrokenResourceError):
            await rest(ends.client)


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_after_the_end_every_call_says_so(end: str) -> None:
    async with connected() as ends:
        getattr(ends.link, end)()
        with pytest.raises(OSError):  # noqa: PT011 (whichever)
            ends.link.send(b"more")
        with pytest.raises(trio.ClosedResourceError):
            await ends.link.wait_readable()
        with pytest.raises(trio.ClosedResourceError):
            await ends.link.wait_writable()


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(40), b""])
async def test_a_handshake_that_is_none_breaks_the_link(hello: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = TlsLink(SocketLink(ours), SERVER)
    with theirs:
        theirs.sendall(hello)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(trio.BrokenResourceError):
            await link.handshake()
        link.close()
