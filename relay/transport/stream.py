"""One connection's bytes, shared by trio-websocket and the relay. Floor 1.

Before the handshake this is a plain `trio.abc.Stream`, good for HTTP too. From
`splice_after_handshake` on, trio-websocket reads the handshake and the control frames only, one at
a time; whole data messages go to `on_messages`, in order, while it waits for its next bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from relay.closing import Ending
from relay.transport.budget import Budget
from relay.transport.link import Buffer, Link, SocketLink
from relay.transport.outlet import Outlet
from relay.transport.proxy import ProxyHeader
from relay.transport.splice import MESSAGES_AT_ONCE, Message, Splicer
from relay.transport.tls import TlsLink
from relay.transport.wire import CLOSE

MAX_HEAD = 16 * 1024
FIRST_READS = 16 * 1024
"""Bytes read at once before `allow_messages_of`: who is not trusted yet makes us hold little."""
READS_IN_A_ROW = 4
"""After data there is often more: so often the socket is read before Trio is asked to wait."""

_scratch = memoryview(bytearray(256 * 1024))
"""Shared by all streams: in use between a `recv_into` and the end of its `feed`, never over an
await."""


class HeadTooBig(Exception):
    """The request head is larger than `MAX_HEAD`."""


def _nobody(*_news: object) -> None:
    """Where news go that nobody waits for."""


@define(eq=False)
class FrameStream(trio.abc.Stream):
    """A connection's two halves over one link."""

    link: Link
    stall_timeout: float
    outlet: Outlet = field(init=False)
    last_received: float = field(factory=trio.current_time)
    on_end: Callable[[], object] = _nobody
    """Called when the bytes end or the stream is closed; trio-websocket does not tell during its
    handshake."""
    peer_closed: bool = False
    """Whether the peer's Close has been read."""
    _head: bytes = b""
    """Read by `read_head` and not given on yet."""
    _splicer: Splicer | None = None
    _on_messages: Callable[[list[Message]], Awaitable[None]] | None = None
    _on_noise: Callable[[int], object] = _nobody
    _on_fault: Callable[[Ending], object] = _nobody
    _read_size: int = FIRST_READS
    _rest: Buffer = b""
    """Bytes behind the head or behind a full batch of messages, not looked at yet."""

    def __attrs_post_init__(self) -> None:
        self.outlet = Outlet(self.link, self.stall_timeout)

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for Hypercorn to read the addresses from."""
        link = self._bottom
        assert isinstance(link, SocketLink)
        return link.socket

    @property
    def _bottom(self) -> Link:
        return self.link.below if isinstance(self.link, TlsLink) else self.link

    @property
    def encrypted(self) -> bool:
        return isinstance(self.link, TlsLink)

    async def read_proxy_header(self) -> str | None:
        """Read what a proxy begins with, before TLS; the address that it names, if it does.

        Raises `trio.EndOfChannel` when the bytes end first, `NoProxyHeader` when it is none.
        """
        header = ProxyHeader()
        while header.missing:
            count = await self._receive(_scratch[: header.missing], link=self._bottom)
            if count == 0:
                raise trio.EndOfChannel
            header.feed(_scratch[:count])
        return header.source

    async def read_head(self) -> bytes:
        """The request head up to its blank line, to be read again by whoever serves the request.

        Raises `trio.EndOfChannel` when the bytes end first, `HeadTooBig` when the line does not
        come within it.
        """
        while (end := self._head.find(b"\r\n\r\n")) < 0 and len(self._head) <= MAX_HEAD:
            count = await self._receive(_scratch[:MAX_HEAD])
            if count == 0:
                raise trio.EndOfChannel
            self._head += _scratch[:count]
        if end < 0 or end + 4 > MAX_HEAD:
            raise HeadTooBig
        return self._head[: end + 4]

    def splice_after_handshake(
        self,
        *,
        max_message: int,
        budget: Budget,
        on_messages: Callable[[list[Message]], Awaitable[None]],
        on_noise: Callable[[int], object],
        on_fault: Callable[[Ending], object],
    ) -> None:
        """From here on give data messages to `on_messages`, as many as came at once, to `on_noise`
        how many control frames and small fragments came, and breaches of the protocol to
        `on_fault`.

        Call it between `read_head` and the handshake: what follows the head is already spliced.
        """
        # One at a time: the limit that a message lifts counts for the very next one.
        self._splicer = Splicer(
            max_message, budget, on_loss=lambda: on_fault(Ending.OVERLOADED), at_once=1
        )
        self._read_size = FIRST_READS
        self._on_messages, self._on_noise, self._on_fault = on_messages, on_noise, on_fault
        end = self._head.index(b"\r\n\r\n") + 4
        self._head, self._rest = self._head[:end], self._head[end:]

    def allow_messages_of(self, size: int) -> None:
        """Set the largest message from now on, in bytes, and read as much at once as there is."""
        assert self._splicer is not None
        self._splicer.max_message, self._splicer.at_once = size, MESSAGES_AT_ONCE
        self._read_size = len(_scratch)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes for the protocol above: the head, then control frames, or everything for HTTP."""
        if self.link.closed:
            self.on_end()
            raise trio.ClosedResourceError
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, b""
            return head
        if self._splicer is None:
            count = await self._receive(_scratch[: max_bytes or len(_scratch)])
            return _scratch[:count].tobytes()
        return await self._next_control(self._splicer)

    async def send_all(self, data: Buffer) -> None:
        """Send whole control frames (or, before there are frames, bytes) in their turn."""
        if self.link.closed:
            raise trio.ClosedResourceError
        is_close = self._splicer is not None and data and data[0] & 15 == CLOSE and data[0] & 0x80
        try:
            await (self.outlet.send_close(data) if is_close else self.outlet.send(data))
        except trio.BrokenResourceError:
            self.on_end()  # trio-websocket stops reading then, and tells nobody
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self.link.wait_writable()

    def abort(self) -> None:
        """Close at once; what the peer has not got is thrown away."""
        self._end(self.link.reset)

    def forget_listeners(self) -> None:
        """Call nobody any more; for the end, when the stream is closed."""
        self.on_end = self._on_noise = self._on_fault = _nobody
        self._on_messages = self._splicer = None

    async def discard_rest(self) -> None:
        """Read on and throw away, to the end of the bytes or to the peer's Close.

        A socket that is closed with bytes unread resets the connection, and the peer may never see
        our Close.
        """
        splicer = self._splicer
        assert splicer is not None
        while not (self.peer_closed or any(frame[0] & 15 == CLOSE for frame in splicer.controls)):
            if await self._read_messages(splicer) is None:
                break

    async def aclose(self) -> None:
        """Close; a frame of which the peer has only a part ends in a reset."""
        self._end(self.link.reset if self.outlet.cut else self.link.close)
        await trio.lowlevel.checkpoint()

    def _end(self, close: Callable[[], None]) -> None:
        self.outlet.stop()
        if self._splicer is not None:
            self._splicer.forget()
        if not self.link.closed:
            close()
            self.on_end()

    async def _receive(
        self, buffer: memoryview, *, wait: bool = True, link: Link | None = None
    ) -> int:
        """Read once; 0 at the end of the bytes."""
        try:
            count = await self._receive_into(buffer, link or self.link, wait=wait)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.on_end()
            raise
        self.last_received = trio.current_time()
        if count == 0:
            self.on_end()
        return count

    async def _receive_into(self, buffer: memoryview, link: Link, *, wait: bool) -> int:
        while True:
            if wait:
                await link.wait_readable()
            if link.closed:
                raise trio.ClosedResourceError
            try:
                return link.recv_into(buffer)
            except BlockingIOError:
                wait = True
            except OSError as problem:
                raise trio.BrokenResourceError from problem

    async def _next_control(self, splicer: Splicer) -> bytes:
        assert self._on_messages is not None
        eager = 0
        while True:
            if splicer.controls:
                await trio.lowlevel.checkpoint()
                control = splicer.controls.pop(0)
                self.peer_closed = control[0] & 15 == CLOSE
                return control
            messages = await self._read_messages(splicer, wait=eager == 0)
            if messages is None:
                return b""
            eager = (eager - 1) % READS_IN_A_ROW
            if splicer.noise:
                noise, splicer.noise = splicer.noise, 0
                self._on_noise(noise)
            if messages:
                await self._on_messages(messages)
            if splicer.fault is not None:
                fault, splicer.fault = splicer.fault, None
                self._on_fault(fault)

    async def _read_messages(self, splicer: Splicer, *, wait: bool = True) -> list[Message] | None:
        """Read and splice once; None at the end of the bytes."""
        if self._rest:
            await trio.lowlevel.checkpoint()
            data, self._rest = memoryview(self._rest), b""
        else:
            if splicer.missing is None:
                count = await self._receive(_scratch[: self._read_size], wait=wait)
                data = _scratch[:count]
            else:
                count = await self._receive(splicer.missing, wait=wait)
                data = memoryview(splicer.filled(count))
            if count == 0:
                return None
        messages, rest = splicer.feed(data)
        self._rest = rest.tobytes()
        return messages
