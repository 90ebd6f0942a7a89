"""TLS over a socket, as a `Link`.

It uses `SSLObject` with two memory buffers, so that a frame can be written at once here too,
without a task switch or a thread.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import suppress

import trio
from attrs import define, field

from relay.transport.link import Buffer, SocketLink

ENCRYPT_BATCH_BYTES = 64 * 1024
"""Bytes encrypted at a time. This many can wait here for the kernel."""

WANT_MORE = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


_scratch = memoryview(bytearray(64 * 1024))
"""Shared by all links. It is in use from a `recv_into` to the write into TLS, never across an
await."""


@define(eq=False, repr=False)
class TlsLink:
    """The server's side of a TLS connection over a socket link."""

    below: SocketLink
    _context: ssl.SSLContext
    _incoming: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)
    _outgoing: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)
    _tls: ssl.SSLObject = field(init=False)
    _encrypted: bytes = b""
    """Bytes that the kernel has not taken."""
    _held: int = 0
    """Bytes that were encrypted but do not count as taken yet: 1 until `_encrypted` is sent. So the
    caller comes back with the rest of its frame, and what is left here is sent first."""
    _ended: bool = False

    def __attrs_post_init__(self) -> None:
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    @property
    def low_water(self) -> int:
        return self.below.low_water

    @property
    def closed(self) -> bool:
        return self.below.closed

    @property
    def peer(self) -> str:
        return self.below.peer

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate of the other side in DER; None if it showed none."""
        return self._tls.getpeercert(binary_form=True)

    async def handshake(self) -> None:
        """Agree on keys; raises `trio.BrokenResourceError` when that fails. The caller sets the
        deadline."""
        try:
            while not self._try_handshake():
                await self._flush_all()
                await self.below.wait_readable()
                with suppress(BlockingIOError):
                    self._take_in()
            await self._flush_all()
        except OSError as problem:
            with suppress(OSError):
                self._flush()  # the alert with the reason
            raise trio.BrokenResourceError from problem

    def send(self, data: Buffer) -> int:
        self._flush()
        if self._encrypted:
            raise BlockingIOError
        if self._held:
            # The record is sent, so its last byte counts now.
            taken, self._held = self._held, 0
            return taken
        view, taken = memoryview(data), 0
        while taken < len(view) and not self._encrypted:
            taken += self._tls.write(view[taken : taken + ENCRYPT_BATCH_BYTES])
            self._flush()
        if self._encrypted:
            self._held = 1
            taken -= 1
            if not taken:
                raise BlockingIOError
        return taken

    def send_if_low(self, data: Buffer) -> int:
        # Checked before encrypting anything, which cannot be undone.
        unsent = self.unsent()
        if unsent is None or unsent >= self.low_water:
            raise BlockingIOError
        return self.send(data)

    def recv_into(self, buffer: memoryview) -> int:
        if self.below.closed:
            raise OSError(errno.EBADF, "the link is closed")
        while True:
            try:
                return self._tls.read(len(buffer), buffer)  # type: ignore[return-value] # into a buffer: a number
            except WANT_MORE:
                self._take_in()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0  # no closing alert is needed: messages have lengths

    def unsent(self) -> int | None:
        below = self.below.unsent()
        return None if below is None else below + len(self._encrypted)

    async def wait_readable(self) -> None:
        if self._tls.pending() or self._incoming.pending or self._ended:
            await trio.lowlevel.checkpoint()
        else:
            await self.below.wait_readable()

    async def wait_writable(self) -> None:
        await self.below.wait_writable()

    def end_writing(self) -> None:
        if not self.closed and not self._encrypted:
            self._say_end()
            self.below.end_writing()

    def close(self) -> None:
        if not self.closed and not self._encrypted:
            self._say_end()
        self.below.close()

    def reset(self) -> None:
        self.below.reset()

    def _try_handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except WANT_MORE:
            return False
        return True

    def _take_in(self) -> None:
        """Pass what the socket has to TLS; raises `BlockingIOError` when it has nothing."""
        if self._ended:
            raise ssl.SSLEOFError
        count = self.below.recv_into(_scratch)
        if count:
            self._incoming.write(_scratch[:count])
        else:
            self._ended = True
            self._incoming.write_eof()

    def _flush(self) -> None:
        self._encrypted += self._outgoing.read()
        while self._encrypted:
            try:
                sent = self.below.send(self._encrypted)
            except BlockingIOError:
                return
            self._encrypted = self._encrypted[sent:]

    async def _flush_all(self) -> None:
        self._flush()
        while self._encrypted:
            await self.below.wait_writable()
            self._flush()

    def _say_end(self) -> None:
        with suppress(OSError):
            self._tls.unwrap()
        with suppress(OSError):
            self._flush()
