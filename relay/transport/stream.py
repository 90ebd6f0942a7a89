"""The bytes of one connection.

Before there are frames this is a plain `trio.abc.Stream`, good for HTTP and for the handshake.
After that, one task reads: whole data messages go to `on_messages`, in order, and control frames
are answered here.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from attrs import define, field

from relay.protocol.endings import Ending
from relay.transport.acceptance import Acceptance
from relay.transport.budget import Budget
from relay.transport.framing.frame_parser import (
    MAX_MESSAGES_PER_FEED,
    FrameParser,
    IncompleteMessage,
    Message,
    ParsedFrames,
)
from relay.transport.framing.unmask import unmask
from relay.transport.link import Buffer, Link, SocketLink, detach
from relay.transport.outlet import Outlet
from relay.transport.proxy import ProxyHeader
from relay.transport.tls import TlsLink
from relay.transport.wire import CLOSE, PONG, frame

MAX_HEAD_BYTES = 16 * 1024
FIRST_READ_BYTES = 16 * 1024
"""Bytes of one read before `allow_messages_of`: hold little for a peer that is not trusted yet."""
MAX_READS_IN_A_ROW = 4
"""Reads from the socket before Trio is asked to wait, from a peer that sends without a pause."""
MAX_PAUSE = 0.002
"""Seconds between two reads that found something. After a longer pause of the peer, or of a busy
relay, the next read waits for the socket first: often nothing more has come yet, and a read that
finds nothing costs as much as any other."""

MAX_LINGER_BYTES = 16 * 1024 * 1024
"""Bytes that are thrown away for a peer that goes on sending when it has its answer: many clients
read it only when they have sent all of their request."""
LINGER_PAUSE = 2.0
"""Seconds in which such a peer must send something, or end its half."""

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading raises once the link is broken or closed."""

_scratch = memoryview(bytearray(256 * 1024))
"""Shared by all streams. It is in use from a `recv_into` to the end of its `feed`, and never across
an await."""


class HeadTooBig(Exception):
    """The request head is larger than `MAX_HEAD_BYTES`."""


def ignore(*_news: object) -> None:
    """Do nothing with what nobody listens for."""


@define(eq=False, repr=False)
class FrameStream(trio.abc.Stream):
    """The two halves of a connection, over one link."""

    link: Link
    stall_timeout: float
    acceptance: Acceptance | None = None
    """How it came here; None when this process accepted it."""
    outlet: Outlet = field(init=False)
    last_received: float = field(factory=trio.current_time)
    on_end: Callable[[], object] = ignore
    """Called when the bytes end or the stream is closed."""
    peer_closed: bool = False
    """Whether the peer's Close has been read."""
    _has_waited: bool = False
    _head: bytes = b""
    """Read by `read_head` and not passed on yet."""
    _parser: FrameParser | None = None
    _on_messages: Callable[[list[Message]], Awaitable[None]] | None = None
    _on_overhead: Callable[[int], object] = ignore
    _on_fault: Callable[[Ending], object] = ignore
    _on_progress: Callable[[int], object] = ignore
    _progress_interval: float = math.inf
    """Seconds between two calls of it."""
    _progress_due: float = math.inf
    _read_size: int = FIRST_READ_BYTES
    _rest: Buffer = b""
    """Bytes behind a full batch of messages, that are not parsed yet."""

    def __attrs_post_init__(self) -> None:
        self.outlet = Outlet(self.link, self.stall_timeout, last_progress=self.last_received)

    @property
    def _bottom(self) -> Link:
        return self.link.below if isinstance(self.link, TlsLink) else self.link

    @property
    def encrypted(self) -> bool:
        return isinstance(self.link, TlsLink)

    @property
    def is_plain(self) -> bool:
        """Whether another process could go on with the link: it is a socket and no more."""
        return isinstance(self.link, SocketLink)

    @property
    def is_fresh(self) -> bool:
        """Whether its task has not waited for it yet, so that this is the round of the scheduler in
        which it began: what was read so far had come before."""
        return self.is_plain and not self._has_waited

    def detach(self) -> socket.socket:
        """Give the socket of a plain link away, and count as closed."""
        assert isinstance(self.link, SocketLink)
        return detach(self.link)

    async def read_proxy_header(self) -> str | None:
        """Read the PROXY header, before TLS; returns the address that it names, if any.

        Raises `trio.EndOfChannel` when the bytes end first, `NoProxyHeader` for anything else.
        """
        header = ProxyHeader()
        while header.missing:
            count = await self._receive(_scratch[: header.missing], link=self._bottom)
            if count == 0:
                raise trio.EndOfChannel
            header.feed(_scratch[:count])
        return header.source

    async def read_head(self) -> bytes:
        """Read the request head up to its blank line; `receive_some` gives it once more.

        Raises `trio.EndOfChannel` when the bytes end first, `HeadTooBig` when the head is longer
        than `MAX_HEAD_BYTES`.
        """
        while (end := self._head.find(b"\r\n\r\n")) < 0 and len(self._head) <= MAX_HEAD_BYTES:
            count = await self._receive(_scratch[:MAX_HEAD_BYTES], wait=bool(self._head))
            if count == 0:
                raise trio.EndOfChannel
            self._head += _scratch[:count]
        if end < 0 or end + 4 > MAX_HEAD_BYTES:
            raise HeadTooBig
        return self._head[: end + 4]

    @property
    def early(self) -> bool:
        """Whether there is more than the request head already, before it was answered."""
        return len(self._head) > self._head.index(b"\r\n\r\n") + 4

    def begin_frames(
        self,
        *,
        max_message: int,
        budget: Budget,
        party: str,
        on_messages: Callable[[list[Message]], Awaitable[None]],
        on_overhead: Callable[[int], object],
        on_fault: Callable[[Ending], object],
    ) -> None:
        """Expect frames from now on, and read no head any more. Call this after the handshake.

        `on_messages` gets the data messages that arrived together, `on_overhead` the number of
        control frames and small fragments, and `on_fault` the ending that a breach of the protocol,
        or an eviction from the budget, asks for. `party` answers for what is held of the budget.
        """
        # One message at a time: the limit that it lifts counts for the very next one.
        self._parser = FrameParser(
            *(max_message, budget, party),
            on_evicted=partial(on_fault, Ending.OVERLOADED),
            max_messages=1,
        )
        self._read_size = FIRST_READ_BYTES
        self._on_messages, self._on_overhead, self._on_fault = on_messages, on_overhead, on_fault
        self._head = b""

    def hand_on_to(
        self,
        on_messages: Callable[[list[Message]], Awaitable[None]],
        on_overhead: Callable[[int], object],
    ) -> None:
        """Give what comes from now on to others."""
        self._on_messages, self._on_overhead = on_messages, on_overhead

    def report_progress(self, on_progress: Callable[[int], object], interval: float) -> None:
        """While a message is incomplete and bytes of it arrive, call `on_progress` with their
        number, at most once in `interval` seconds."""
        self._on_progress, self._progress_interval = on_progress, interval
        self._progress_due = trio.current_time() + interval

    @property
    def progress_interval(self) -> float | None:
        """As `report_progress` was told; None if it was not called."""
        return None if self._progress_interval == math.inf else self._progress_interval

    def allow_messages_of(self, size: int, party: str) -> None:
        """Allow messages of up to `size` bytes from now on, for which `party` answers, and reads of
        any size."""
        assert self._parser is not None
        self._parser.belong_to(party)
        self._parser.max_message, self._parser.max_messages = size, MAX_MESSAGES_PER_FEED
        self._read_size = len(_scratch)

    @property
    def incomplete_message(self) -> IncompleteMessage | None:
        """The message of which only a part has arrived, if there is one."""
        return None if self._parser is None else self._parser.incomplete

    @property
    def is_at_rest(self) -> bool:
        """Whether another process could go on with the link: nothing that came is incomplete or not
        handed on yet, and nothing waits to be sent."""
        return (
            self._parser is not None
            and self._parser.is_at_rest
            and not self._rest
            and not self.peer_closed
            and self.outlet.is_at_rest
        )

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive bytes for HTTP: what `read_head` has read, and then what comes."""
        if self.link.closed:
            self.on_end()
            raise trio.ClosedResourceError
        if self._head:
            await trio.lowlevel.checkpoint()
            head, self._head = self._head, b""
            return head
        count = await self._receive(_scratch[: max_bytes or len(_scratch)])
        return _scratch[:count].tobytes()

    async def read_frames(self) -> None:
        """Hand on the messages that come, and answer pings and the peer's Close.

        Returns when the bytes end, or when the peer's Close is answered and the stream closed.
        Raises `trio.BrokenResourceError`, or `trio.ClosedResourceError` when closed meanwhile.
        """
        parser, reads = self._parser, 0
        assert parser is not None
        while not self.peer_closed:
            before = self.last_received
            try:
                if self._rest:
                    await trio.lowlevel.checkpoint()
                elif reads == 0:
                    await self.link.wait_readable()
                parsed = self._parse_once(parser)
            except BlockingIOError:
                reads = 0
                continue
            except BROKEN:
                self.on_end()
                raise
            if parsed is None:
                return
            paused = self.last_received - before > MAX_PAUSE
            reads = 0 if paused else (reads + 1) % MAX_READS_IN_A_ROW
            if parsed.overhead:
                self._take_overhead(parsed)
            if parsed.messages:
                assert self._on_messages is not None
                await self._on_messages(parsed.messages)
            if parsed.breach is not None or parsed.controls:
                await self._answer(parsed)
            del parsed  # a large message must not be held until the next one comes

    async def send_all(self, data: Buffer) -> None:
        """Send bytes, before there are frames."""
        await self._send(self.outlet.send, data)

    async def send_first(self, data: Buffer) -> None:
        """Send the first bytes, by the only task that has the stream. Usually no checkpoint: the
        task goes on to read."""
        await self._send(self.outlet.send_first, data)

    async def _send(self, send: Callable[[Buffer], Awaitable[None]], data: Buffer) -> None:
        if self.link.closed:
            raise trio.ClosedResourceError
        try:
            await send(data)
        except trio.BrokenResourceError:
            self.on_end()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self.link.wait_writable()

    def abort(self) -> None:
        """Close at once, and throw away what the peer has not received."""
        self._end(self.link.reset)

    def forget_listeners(self) -> None:
        """Call no listener any more, and keep no source; for a stream that is closed."""
        self.on_end = self._on_overhead = self._on_fault = self._on_progress = ignore
        self._on_messages = self._parser = None
        self.outlet.forget_sources()

    async def discard_rest(self) -> None:
        """Read and throw away everything up to the end of the bytes or the peer's Close.

        Closing a socket with unread bytes resets the connection, and the peer may never see our
        Close.
        """
        parser = self._parser
        assert parser is not None
        while not self.peer_closed:
            try:
                if self._rest:
                    await trio.lowlevel.checkpoint()
                else:
                    await self.link.wait_readable()
                parsed = self._parse_once(parser)
            except BlockingIOError:
                continue
            except BROKEN:
                self.on_end()
                raise
            if parsed is None:
                break
            self._note_close(parsed)

    async def linger(self) -> None:
        """End our half after a plain response, and throw away what comes until the peer ends its.

        Closing a socket with unread bytes resets the connection, and the peer may never see the
        response. Returns when much has come, and when nothing comes for a while.
        """
        self.outlet.stop()
        self.link.end_writing()
        self._head = b""
        left = MAX_LINGER_BYTES
        with trio.CancelScope() as lingering:
            while left > 0:
                lingering.deadline = trio.current_time() + LINGER_PAUSE
                count = await self._receive(_scratch, link=self._bottom)
                if count == 0:
                    return
                left -= count

    async def aclose(self) -> None:
        """Close, by a reset if the peer has only a part of the last frame."""
        if not self.link.closed:
            self.close()
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close like `aclose`, without a checkpoint."""
        self._end(self.link.reset if self.outlet.cut else self.link.close)
        self.outlet.held = None

    def _end(self, close: Callable[[], None]) -> None:
        self.outlet.stop()
        if self._parser is not None:
            self._parser.stop()
        if not self.link.closed:
            close()
            self.on_end()

    async def _receive(
        self, buffer: memoryview, *, wait: bool = True, link: Link | None = None
    ) -> int:
        """Read once; 0 at the end of the bytes."""
        link = link or self.link
        while True:
            try:
                if wait:
                    self._has_waited = True
                    await link.wait_readable()
                return self._receive_now(buffer, link)
            except BlockingIOError:
                wait = True
            except BROKEN:
                self.on_end()
                raise

    def _receive_now(self, buffer: memoryview, link: Link) -> int:
        """Read what is there; 0 at the end of the bytes. Raises `BlockingIOError` when there is
        nothing yet."""
        try:
            count = link.recv_into(buffer)
        except BlockingIOError:
            raise
        except OSError as problem:
            if link.closed:
                raise trio.ClosedResourceError from None
            raise trio.BrokenResourceError from problem
        self.last_received = trio.current_time()
        if count == 0:
            self.on_end()
        return count

    def _take_overhead(self, parsed: ParsedFrames) -> None:
        """Take answers to probes, and count the other control frames and small fragments."""
        if parsed.controls:
            self._note_close(parsed)
        overhead = parsed.overhead
        if parsed.answers:
            overhead -= self.outlet.take_answers(parsed.answers, self.last_received)
        if overhead > 0:
            self._on_overhead(overhead)

    def _note_close(self, parsed: ParsedFrames) -> None:
        self.peer_closed = any(each[0] & 15 == CLOSE for each in parsed.controls)

    async def _answer(self, parsed: ParsedFrames) -> None:
        """Tell of a breach, and answer control frames; after a Close the stream is closed."""
        if parsed.breach is not None:
            self._on_fault(parsed.breach.ending)
        for control in parsed.controls:
            payload = unmask(control[6:], control[2:6])
            if control[0] & 15 == CLOSE:
                await self.outlet.send_close(frame(CLOSE, payload))
                await self.aclose()
            elif not self.outlet.post_control(frame(PONG, payload)):
                self.on_end()
                raise trio.BrokenResourceError

    def _parse_once(self, parser: FrameParser) -> ParsedFrames | None:
        """Parse what is left, or read and parse once; None at the end of the bytes. Raises
        `BlockingIOError` when there is nothing yet."""
        if self._rest:
            data, self._rest = memoryview(self._rest), b""
            parser.hold_unparsed(0)
            parsed = parser.feed(data)
        elif (missing := parser.missing) is None:
            count = self._receive_now(_scratch[: self._read_size], self.link)
            if count == 0:
                return None
            parsed = parser.feed(_scratch[:count])
        else:
            count = self._receive_now(missing, self.link)
            if count == 0:
                return None
            parsed = parser.fill(count)
        if parsed.rest:
            self._rest = parsed.rest.tobytes()
            parser.hold_unparsed(len(self._rest))
        if self.last_received >= self._progress_due and parser.incomplete is not None:
            self._progress_due = self.last_received + self._progress_interval
            self._on_progress(parser.incomplete.arrived)
        return parsed
