"""Links with marks of their own, which nodes have to one another, on real sockets."""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing
from attrs import define, field

from relay.transport import wire
from relay.transport.link import UNIX_LOW_WATER_BYTES, SocketLink, UnixLink
from relay.transport.outlet import Outlet

ONLY_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="platform: only Linux tells unsent bytes"
)
FRAME = wire.frame(wire.BINARY, bytes(32 * 1024))


@pytest.fixture
def ends() -> Iterator[tuple[UnixLink, socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        link = UnixLink(ours)
        yield link, theirs
        ours.close()


@define(eq=False)
class Frames:
    """A source of frames."""

    frames: deque[bytes] = field(factory=deque)
    in_line: bool = False

    def take(self) -> bytes | None:
        return self.frames.popleft() if self.frames else None

    def waiting(self) -> bool:
        return bool(self.frames)


def write_all(link: UnixLink) -> int:
    """Write until the outlet would rather queue; the bytes that were taken."""
    outlet, taken = Outlet(link, 30.0), 0
    outlet.open(lambda: None)
    while outlet.write_now(FRAME) and not outlet.cut:
        taken += len(FRAME)
    return taken


@ONLY_LINUX
async def test_a_unix_link_knows_what_the_peer_has_not_read(
    ends: tuple[UnixLink, socket.socket],
) -> None:
    link, theirs = ends
    assert link.unsent() == 0
    assert link.send(bytes(10_000)) == 10_000
    assert (link.unsent() or 0) >= 10_000
    theirs.recv(20_000)
    assert link.unsent() == 0


@ONLY_LINUX
async def test_a_unix_link_takes_many_frames_at_once_but_not_all_that_fits(
    ends: tuple[UnixLink, socket.socket],
) -> None:
    link, _ = ends
    room = link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    taken = write_all(link)
    assert taken >= min(UNIX_LOW_WATER_BYTES, room) // 2
    if room >= 3 * UNIX_LOW_WATER_BYTES:  # else the system allows less
        assert (link.unsent() or 0) < UNIX_LOW_WATER_BYTES + 4 * len(FRAME)
        with pytest.raises(BlockingIOError):
            link.send_if_low(b"more")
        assert link.send(b"more")  # what was begun goes on


@ONLY_LINUX
async def test_a_unix_link_is_writable_again_at_its_low_water_mark(
    ends: tuple[UnixLink, socket.socket],
) -> None:
    link, theirs = ends
    with suppress(BlockingIOError):
        while True:
            link.send(FRAME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.wait_writable)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        while nursery.child_tasks:
            assert theirs.recv(len(FRAME), socket.MSG_DONTWAIT)
            await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
    assert 0 < (link.unsent() or 0) <= UNIX_LOW_WATER_BYTES


async def test_without_the_count_of_unsent_bytes_the_writer_alone_writes(
    ends: tuple[UnixLink, socket.socket],
) -> None:
    """As on macOS."""
    link, theirs = ends
    link.knows_unsent = False
    assert link.unsent() is None
    assert write_all(link) == 0
    frames = [wire.frame(wire.BINARY, bytes([number]) * 50_000) for number in range(100)]
    outlet = Outlet(link, 30.0)
    async with trio.open_nursery() as nursery:
        outlet.open(lambda: nursery.start_soon(outlet.run))
        outlet.line_up(Frames(deque(frames)))
        received = b""
        with trio.fail_after(10):
            while len(received) < sum(map(len, frames)):
                await trio.lowlevel.wait_readable(theirs)
                received += theirs.recv(1 << 20)
        assert received == b"".join(frames)
        nursery.cancel_scope.cancel()


async def test_a_closed_unix_link_says_so(ends: tuple[UnixLink, socket.socket]) -> None:
    link, _ = ends
    link.close()
    for send in (link.send_if_low, link.send):
        with pytest.raises(OSError) as raised:  # noqa: PT011 (whichever)
            send(b"x")
        assert not isinstance(raised.value, BlockingIOError)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="platform: has no such mark")
async def test_a_link_over_tcp_can_have_another_mark() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
    ):
        link = SocketLink(ours, low_water=100_000)
        mark = link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert mark == link.low_water == 100_000
