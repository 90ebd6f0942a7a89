"""The client's side of a WebSocket (RFC 6455), for tens of thousands of frames a second.

It reads as much as there is, cuts it into messages without copying them, and hands on each at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define, field

from relay.client.errors import Closed, DialFailed
from relay.client.handshake import LOST, shake_hands
from relay.transport import wire
from relay.transport.framing.unmask import unmask

MAX_MESSAGE_BYTES = 24 * 1024 * 1024
"""A message of 16 MiB whose data became base64, and what stands around it."""
MAX_READ_BYTES = 256 * 1024
MAX_WRITE_BYTES = 64 * 1024
"""Sent at once, so that a large message can be seen to move."""
CLOSE_TIMEOUT = 1.0
"""Seconds that sending our Close may take, and then the server's end of the connection. Both are
shielded: a cancelled client still says goodbye."""
NORMAL_CLOSURE, PROTOCOL_ERROR, NO_STATUS, ABNORMAL_CLOSURE = 1000, 1002, 1005, 1006
MESSAGE_TOO_BIG = 1009
_READER = bytearray(MAX_READ_BYTES)
"""One for all connections: nothing is left in it when a read has been looked at."""

OnMessage = Callable[[memoryview], None]


@define(eq=False)
class WebSocket:
    """An open connection. `send` may be called by several tasks; one task reads."""

    stream: trio.abc.Stream
    subprotocol: str | None = None
    """The one that the server chose."""
    bytes_in: int = 0
    bytes_out: int = 0
    heard_at: float = 0.0
    """Trio's time when the last byte came: of a large message, of a ping, of anything."""
    moved_at: float = 0.0
    """Trio's time when the stream last took bytes from us, be it in the middle of a message."""
    closed: Closed | None = None
    """How it ended, once it has."""
    _rest: bytearray = field(factory=bytearray)
    """The beginning of a frame whose end has not come."""
    _needed: int = 0
    """The length that `_rest` must have before it is worth looking at."""
    _fragments: bytearray | None = None
    _text: bool = False
    """Whether the last message was text."""
    _received: deque[str | bytes] = field(factory=deque)
    """Messages for `receive`, of one read."""
    _early: bool = False
    """Whether messages came together with the handshake."""
    _pong: bytes | None = None
    _writing: trio.Lock = field(factory=trio.Lock)
    _sent_close: bool = False

    async def send(self, message: str | bytes) -> None:
        """Send text or bytes; `Closed` when the connection is gone.

        Cancelled halfway it leaves half a message behind, so it breaks the connection.
        """
        if isinstance(message, str):
            await self._write(_masked(wire.TEXT, message.encode()))
        else:
            await self._write(_masked(wire.BINARY, message))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are: frames that were made before, or what no client sends; `Closed`.

        Cancelled halfway it breaks the connection.
        """
        await self._write(data)

    async def receive(self) -> str | bytes:
        """Wait for the next message; `Closed` after the last one. `read` is faster."""
        while not self._received:
            await self.read(self._keep)
        return self._received.popleft()

    async def read(self, on_message: OnMessage) -> None:
        """Wait for bytes and hand on the messages that they complete; `Closed` at the end.

        A message is valid only until `on_message` returns. What came together with the Close is
        handed on first: the next call raises.
        """
        while self._received and self._early:
            early = self._received.popleft()
            on_message(memoryview(early.encode() if isinstance(early, str) else early))
        self._early = False
        if self.closed is not None:
            raise self.closed
        self.receive_data(await self._read_some(), on_message)
        if self._pong is not None and not self._writing.locked():  # or the writer sends it
            pong, self._pong = self._pong, None
            with suppress(Closed):  # the next call raises it, behind the messages of this one
                await self._write(pong)
        if self.closed is not None:
            await self._send_close()

    def receive_early(self, data: memoryview) -> None:
        """Keep what came together with the handshake: a server may speak first."""
        self._early = True
        self.receive_data(data, self._keep)

    def receive_data(self, data: memoryview, on_message: OnMessage) -> None:  # noqa: C901 (it is hot)
        """Hand on the messages that these bytes complete."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return None
            whole, self._rest = self._rest, bytearray()
            data = memoryview(whole)
        at, end = 0, len(data)
        while end - at >= 2 and self.closed is None:
            length = data[at + 1]
            header = 2
            if length == 126:
                header = 4
                length = (data[at + 2] << 8) | data[at + 3] if end - at >= 4 else 0
            elif length >= 127:
                if length > 127:
                    return self._break("the server masks its frames")
                header = 10
                length = int.from_bytes(data[at + 2 : at + 10]) if end - at >= 10 else 0
            if length > MAX_MESSAGE_BYTES:
                self.closed = Closed(MESSAGE_TOO_BIG, f"the server announces {length} bytes")
                return None
            self._needed = header + length
            if end - at < self._needed:
                break
            opcode = data[at]
            payload = data[at + header : at + self._needed]
            at += self._needed
            if opcode in {wire.FIN | wire.BINARY, wire.FIN | wire.TEXT}:
                self._text = opcode == wire.FIN | wire.TEXT
                on_message(payload)
            else:
                self._receive_other(opcode, payload, on_message)
        if end - at < 2:
            self._needed = 2  # the length of the last frame says nothing about the next one
        if at < end and self.closed is None:
            self._rest = bytearray(data[at:])
        return None

    def _receive_other(self, opcode: int, payload: memoryview, on_message: OnMessage) -> None:
        """Control frames and fragments."""
        kind, final = opcode & 15, opcode & wire.FIN
        if kind == wire.PING:
            self._pong = _masked(wire.PONG, bytes(payload[: wire.MAX_CONTROL_BYTES]))
        elif kind == wire.CLOSE:
            code = int.from_bytes(payload[:2]) if len(payload) >= 2 else NO_STATUS
            reason = bytes(payload[2:]).decode(errors="replace") or None
            self.closed = Closed(code, reason)
        elif kind == wire.PONG:
            pass
        elif kind in {wire.TEXT, wire.BINARY} and self._fragments is None:
            self._text = kind == wire.TEXT
            self._fragments = bytearray(payload)
        elif kind == wire.CONTINUATION and self._fragments is not None:
            self._fragments += payload
            if len(self._fragments) > MAX_MESSAGE_BYTES:
                self.closed = Closed(MESSAGE_TOO_BIG, "the server's message does not end")
            elif final:
                whole, self._fragments = self._fragments, None
                on_message(memoryview(whole))
        else:
            self._break(f"the server sent a frame that begins with {opcode:#04x}")

    def _break(self, reason: str) -> None:
        self.closed = Closed(PROTOCOL_ERROR, reason)

    def _keep(self, message: memoryview) -> None:
        data = bytes(message)
        self._received.append(data.decode(errors="replace") if self._text else data)

    async def abort(self) -> None:
        """Break the connection without a goodbye: nobody is there to hear it."""
        await trio.aclose_forcefully(self.stream)

    async def aclose(self) -> None:
        """Send a Close, unless one was sent, and wait until the server ends the connection."""
        if self.closed is None:
            self.closed = Closed(NORMAL_CLOSURE, "the client left")
        await self._send_close()
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            # To close with bytes unread would take back what was sent. Another task may be reading.
            with suppress(*LOST, trio.BusyResourceError):
                while await self.stream.receive_some(MAX_READ_BYTES):
                    pass

    async def _send_close(self) -> None:
        assert self.closed is not None
        if self._sent_close:
            return
        unsendable = self.closed.code in {NO_STATUS, ABNORMAL_CLOSURE}
        code = NORMAL_CLOSURE if unsendable else self.closed.code
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            with suppress(Closed):
                await self._write(_masked(wire.CLOSE, code.to_bytes(2)))
        self._sent_close = True

    async def _read_some(self) -> memoryview:
        """Wait for bytes, which are valid until the next read; `Closed` at the end of them."""
        stream = self.stream
        try:
            if isinstance(stream, trio.SocketStream):
                view = memoryview(_READER)
                data = view[: await _read_into(stream.socket, view)]
            else:
                data = memoryview(await stream.receive_some(MAX_READ_BYTES))
        except LOST:
            data = memoryview(b"")
        if not data:
            self.closed = self.closed or Closed(ABNORMAL_CLOSURE)
            raise self.closed
        self.bytes_in += len(data)
        self.heard_at = trio.current_time()
        return data

    async def _write(self, data: bytes) -> None:
        if self._sent_close:
            raise self.closed or Closed(ABNORMAL_CLOSURE)
        async with self._writing:
            try:
                if len(data) <= MAX_WRITE_BYTES:
                    await self.stream.send_all(data)
                else:
                    await self._write_large(memoryview(data))
                # To wait for its turn would keep the reader from reading for as long as this takes.
                while self._pong is not None and self.closed is None:
                    pong, self._pong = self._pong, None
                    await self.stream.send_all(pong)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self.closed or Closed(ABNORMAL_CLOSURE) from None
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)
                raise
        self.moved_at = trio.current_time()
        self.bytes_out += len(data)

    async def _write_large(self, data: memoryview) -> None:
        for start in range(0, len(data), MAX_WRITE_BYTES):
            await self.stream.send_all(data[start : start + MAX_WRITE_BYTES])
            self.moved_at = trio.current_time()


async def _read_into(socket: trio.socket.SocketType, view: memoryview) -> int:
    """Read without giving way afterwards: the buffer is for all."""
    while True:
        if socket.fileno() < 0:  # somebody closed it while nobody waited for it
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(socket)
        with suppress(BlockingIOError):
            return os.readv(socket.fileno(), [view])


def _masked(opcode: int, payload: bytes) -> bytes:
    """A frame as a client sends it."""
    head = bytearray(wire.frame(opcode, payload)[: -len(payload) or None])
    head[1] |= wire.MASKED
    mask = os.urandom(4)
    return b"".join((head, mask, unmask(payload, mask)))


@asynccontextmanager
async def open_websocket(
    stream: trio.abc.Stream,
    host: str,
    resource: str,
    subprotocols: Sequence[str] = (),
    *,
    required_subprotocol: str | None = None,
) -> AsyncIterator[WebSocket]:
    """Make a WebSocket of a connected stream, and close both at the end; `DialFailed`.

    `subprotocols` are offered, and the server may choose none; so is the required one, without
    which there is no connection.
    """
    offers = [required_subprotocol] if required_subprotocol else list(subprotocols)
    try:
        subprotocol, early = await shake_hands(stream, host, resource, offers)
        now = trio.current_time()
        socket = WebSocket(stream, subprotocol, heard_at=now, moved_at=now)
        if early:
            socket.receive_early(memoryview(early))
        try:
            if required_subprotocol and socket.subprotocol != required_subprotocol:
                raise DialFailed(f"{host} does not speak {required_subprotocol}")
            yield socket
        finally:
            await socket.aclose()
    finally:
        await trio.aclose_forcefully(stream)
