"""The byte pipe below a stream: a non-blocking socket, or something that behaves like one."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Protocol

import trio
from attrs import define

LOW_WATER_BYTES = 8 * 1024
"""Bytes that may wait in the kernel unsent on the way to a client. The rest waits in our own
queues, where a newer frame can still replace it."""

UNIX_LOW_WATER_BYTES = 1024 * 1024
UNIX_SEND_BUFFER_BYTES = 2 * 1024 * 1024
"""Of a Unix socket to another process of this machine, which reads many streams from it, and whose
next turn may be late by many frames. Linux doubles the buffer, and calls the socket writable while
a quarter of that is taken: the low-water mark."""

_SIOCOUTQNSD = 0x894B
"""Linux: asks for the bytes of the send queue that were never sent (linux/sockios.h)."""

INHERITS_OPTIONS = sys.platform == "linux"
"""Whether an accepted socket has the options of its listener."""

_SEND_FLAGS = socket.MSG_EOR if sys.platform == "linux" else 0
"""Linux does not append a write to one that ended a record, and so takes nothing once
`TCP_NOTSENT_LOWAT` bytes are unsent. Without this flag it would take up to 64 KiB more."""

_unsent = array.array("i", [0])
"""Shared by all links, for one call at a time."""

Buffer = bytes | bytearray | memoryview


class Link(Protocol):
    """The byte pipe that a stream needs. Calls that do not wait raise `OSError` once the link is
    closed or broken."""

    @property
    def low_water(self) -> int:
        """Bytes that may wait in the kernel unsent before a frame is rather kept."""

    @property
    def closed(self) -> bool: ...

    @property
    def peer(self) -> str:
        """The address of the other side, for the log."""

    async def handshake(self) -> None:
        """Do what precedes the first byte; raises `trio.BrokenResourceError` when that fails."""

    def send(self, data: Buffer) -> int:
        """Take what fits now and return its size; raises `BlockingIOError` when nothing fits."""

    def send_if_low(self, data: Buffer) -> int:
        """Like `send`, but take nothing when `low_water` bytes are unsent, or may be."""

    def recv_into(self, buffer: memoryview) -> int:
        """Read into the buffer and return the size, 0 at the end of the bytes; raises
        `BlockingIOError` when there is nothing yet."""

    def unsent(self) -> int | None:
        """Return the bytes taken that have not left this machine; None when that is unknown."""

    async def wait_readable(self) -> None:
        """Raises `trio.ClosedResourceError` when the link is closed, also during the wait."""

    async def wait_writable(self) -> None:
        """Raises like `wait_readable`."""

    def end_writing(self) -> None:
        """Tell the other side that no more bytes come, and go on reading. Never raises."""

    def close(self) -> None:
        """Close, and still deliver what was taken."""

    def reset(self) -> None:
        """Close, and drop what was taken, which the kernel would otherwise keep for minutes."""


def set_options(tcp: socket.socket, low_water: int = LOW_WATER_BYTES) -> None:
    """Write at once, and keep little unsent in the kernel."""
    if tcp.family != socket.AF_UNIX:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, low_water)


@define(eq=False, repr=False)
class SocketLink:
    """A connected TCP socket as a `Link`."""

    socket: socket.socket
    peer: str = "unknown"
    knows_unsent: bool = sys.platform == "linux"
    """Whether the kernel reports unsent bytes; if not, only the writer task writes."""
    has_options: bool = False
    """Whether it inherited its options from the listener."""
    low_water: int = LOW_WATER_BYTES
    is_shared: bool = False
    """Whether another process may have a copy of the socket, so that the peer would not notice that
    this one is closed."""

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)  # noqa: FBT003 (positional only)
        if not self.has_options:
            # macOS refuses every option of a socket whose peer is gone. The next read will notice.
            with suppress(OSError):
                set_options(self.socket, self.low_water)

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    async def handshake(self) -> None:
        pass  # nothing precedes the first byte

    def send(self, data: Buffer) -> int:
        return self.socket.send(data, _SEND_FLAGS)

    def send_if_low(self, data: Buffer) -> int:
        if self.knows_unsent:
            return self.socket.send(data, _SEND_FLAGS)
        raise BlockingIOError

    def recv_into(self, buffer: memoryview) -> int:
        return self.socket.recv_into(buffer)

    def unsent(self) -> int | None:
        if not self.knows_unsent:
            return None
        if self.closed:
            raise OSError(errno.EBADF, "the link is closed")
        fcntl.ioctl(self.socket, _SIOCOUTQNSD, _unsent)
        return _unsent[0]

    async def wait_readable(self) -> None:
        number = self.socket.fileno()
        if number < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(number)

    async def wait_writable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self.socket)

    def end_writing(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self.closed:
            trio.lowlevel.notify_closing(self.socket)
            if self.is_shared:
                with suppress(OSError):
                    self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()

    def reset(self) -> None:
        if not self.closed:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()


def detach(link: SocketLink) -> socket.socket:
    """Take the socket from a link, which counts as closed then: the peer notices nothing."""
    trio.lowlevel.notify_closing(link.socket)
    whole = link.socket
    # macOS would not tell what kind of socket it is, if its peer is gone.
    kind = (whole.family, whole.type, whole.proto)
    return socket.socket(*kind, fileno=whole.detach())


@define(eq=False, repr=False)
class UnixLink(SocketLink):
    """A connected Unix socket as a `Link`. It has room for much: the process at the other end is
    relay, too."""

    peer: str = "unix"
    low_water: int = UNIX_LOW_WATER_BYTES

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)  # noqa: FBT003 (positional only)
        with suppress(OSError):  # macOS refuses more than its limit, and then keeps what it has
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER_BYTES)

    def send_if_low(self, data: Buffer) -> int:
        # The kernel knows no mark for these sockets, and would take what fits.
        unsent = self.unsent()
        if unsent is None or unsent >= self.low_water:
            raise BlockingIOError
        return self.socket.send(data)

    def unsent(self) -> int | None:
        """Return the bytes that the peer has not read, and what the kernel needs to hold them."""
        if not self.knows_unsent:
            return None
        if self.closed:
            raise OSError(errno.EBADF, "the link is closed")
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, _unsent)  # there is no SIOCOUTQNSD
        return _unsent[0]
