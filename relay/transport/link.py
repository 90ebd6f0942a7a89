"""The byte pipe below a stream: a non-blocking socket, or anything that behaves like one. Floor
1."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
import sys
from contextlib import suppress
from typing import Protocol

import trio
from attrs import define, field

UNSENT_LOW = 8 * 1024
"""So many bytes may lie unsent in the kernel; what is more waits in our own queues, where the
newest frame can still overtake it."""

_SIOCOUTQNSD = 0x894B
"""Linux: how many bytes of the send queue were never sent (linux/sockios.h)."""

_SEND_FLAGS = socket.MSG_EOR if sys.platform == "linux" else 0
"""Linux joins no write to one that ended a record, and so takes nothing once `TCP_NOTSENT_LOWAT`
bytes lie unsent. Without this it would take up to 64 KiB more."""

Buffer = bytes | bytearray | memoryview


class Link(Protocol):
    """What a stream needs of a byte pipe. The calls that do not wait raise `OSError` once it is
    closed or broken."""

    @property
    def closed(self) -> bool: ...

    @property
    def peer(self) -> str:
        """The address of the other side, for the log."""

    async def handshake(self) -> None:
        """Do what comes before any bytes; `trio.BrokenResourceError` when it fails."""

    def send(self, data: Buffer) -> int:
        """Take what fits now and return how much; `BlockingIOError` when nothing does."""

    def send_if_low(self, data: Buffer) -> int:
        """Like `send`, but take nothing once `UNSENT_LOW` bytes lie unsent, or may."""

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the buffer as far as there are bytes; 0 at their end, `BlockingIOError` for none
        yet."""

    def unsent(self) -> int | None:
        """Bytes taken that have not left this machine; None where that cannot be told."""

    async def wait_readable(self) -> None:
        """Raises `trio.ClosedResourceError` once closed, also when that happens meanwhile."""

    async def wait_writable(self) -> None:
        """Likewise."""

    def close(self) -> None:
        """Close; what was taken is still delivered."""

    def reset(self) -> None:
        """Close and throw away what was taken, which the kernel would else keep for minutes."""


@define(eq=False)
class SocketLink:
    """A connected TCP socket as a `Link`."""

    socket: socket.socket
    peer: str = "unknown"
    knows_unsent: bool = sys.platform == "linux"
    """Whether the kernel tells of unsent bytes; without it only the writer task writes."""
    _unsent: array.array[int] = field(factory=lambda: array.array("i", [0]))

    def __attrs_post_init__(self) -> None:
        self.socket.setblocking(False)  # noqa: FBT003 (it has no name for it)
        # macOS refuses every option of a socket whose other side is gone. Who reads will notice.
        with suppress(OSError):
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                    self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW)

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

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
        fcntl.ioctl(self.socket, _SIOCOUTQNSD, self._unsent)
        return self._unsent[0]

    async def wait_readable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self.socket)

    def close(self) -> None:
        if not self.closed:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    def reset(self) -> None:
        if not self.closed:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()
