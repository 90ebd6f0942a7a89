"""A client's WebSocket for tens of thousands of frames a second. Floor 6.

It reads as much as there is, cuts it into messages without copying them, and hands each on at once;
trio-websocket, which `relay.client` is made of, takes almost four times as long to receive one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import trio
import wsproto
from attrs import define, field
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request

from relay.transport import wire
from relay.transport.dial import ABNORMAL_CLOSURE, MAX_MESSAGE_SIZE, Closed, DialFailed
from relay.transport.unmask import unmask

READ_SIZE = 256 * 1024
LONGEST_HEAD = 16 * 1024
HTTP = b"HTTP/"
NORMAL, PROTOCOL_ERROR, TOO_BIG = 1000, 1002, 1009
GOODBYE_SECONDS = 1.0
_READER = bytearray(READ_SIZE)
"""One for all: nothing is left in it when a read has been looked at."""

OnMessage = Callable[[memoryview], None]


@define(eq=False)
class LeanSocket:
    """An open WebSocket. `send` may be called by several tasks; one task reads."""

    stream: trio.abc.Stream
    bytes_in: int = 0
    bytes_out: int = 0
    closed: Closed | None = None
    """How it ended, once it has."""
    _rest: bytearray = field(factory=bytearray)
    """The begin of a frame whose end has not come."""
    _needed: int = 0
    """So long the rest must be before it is worth looking at."""
    _fragments: bytearray | None = None
    _waiting: deque[bytes] = field(factory=deque)
    """Messages for `receive`, of one read."""
    _early: bool = False
    """Whether messages came together with the handshake."""
    _pong: bytes | None = None
    _writing: trio.Lock = field(factory=trio.Lock)
    _said_goodbye: bool = False
    text: bool = False
    """Whether the last message was text."""

    async def send(self, message: str | bytes) -> None:
        """Send text or bytes; `Closed` when the connection is gone.

        Cancelled halfway it leaves half a message behind, so it breaks the connection.
        """
        if isinstance(message, str):
            await self._write(_masked(wire.TEXT, message.encode()))
        else:
            await self._write(_masked(wire.BINARY, message))

    async def receive(self) -> str | bytes:
        """Wait for the next message; `Closed` after the last one. For few of them."""
        while not self._waiting:
            await self.read(lambda message: self._waiting.append(bytes(message)))
        message = self._waiting.popleft()
        return message.decode(errors="replace") if self.text else message

    async def read(self, on_message: OnMessage) -> None:
        """Wait for bytes and hand on the messages that they complete; `Closed` at the end.

        A message is valid only until `on_message` returns. What came together with the Close is
        handed on first: the next call raises.
        """
        while self._waiting and self._early:
            on_message(memoryview(self._waiting.popleft()))
        self._early = False
        if self.closed is not None:
            raise self.closed
        view = memoryview(_READER)
        stream = self.stream
        try:
            if isinstance(stream, trio.SocketStream):
                received = await _read_into(stream.socket, view)
                data = view[:received]
            else:
                data = memoryview(await stream.receive_some(READ_SIZE))
                received = len(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            received = 0
        if not received:
            self._end(ABNORMAL_CLOSURE)
        self.bytes_in += received
        self.take(data, on_message)
        if self._pong is not None:
            pong, self._pong = self._pong, None
            await self._write(pong)
        if self.closed is not None:
            await self._say_goodbye()

    def take_early(self, data: memoryview) -> None:
        """Keep what came together with the handshake: a server may speak first."""
        self._early = True
        self.take(data, lambda message: self._waiting.append(bytes(message)))

    def take(self, data: memoryview, on_message: OnMessage) -> None:  # noqa: C901 (it is hot)
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
                    return self._breach("the server masks its frames")
                header = 10
                length = int.from_bytes(data[at + 2 : at + 10]) if end - at >= 10 else 0
            if length > MAX_MESSAGE_SIZE:
                self.closed = Closed(TOO_BIG, f"the server announces {length} bytes")
                return None
            self._needed = header + length
            if end - at < self._needed:
                break
            opcode = data[at]
            payload = data[at + header : at + self._needed]
            at += self._needed
            if opcode in {wire.FIN | wire.BINARY, wire.FIN | wire.TEXT}:
                self.text = opcode == wire.FIN | wire.TEXT
                on_message(payload)
            else:
                self._take_other(opcode, payload, on_message)
        if end - at < 2:
            self._needed = 2  # what it was says nothing of the frame that begins now
        if at < end and self.closed is None:
            self._rest = bytearray(data[at:])
        return None

    def _take_other(self, opcode: int, payload: memoryview, on_message: OnMessage) -> None:
        """Control frames and fragments."""
        kind, final = opcode & 15, opcode & wire.FIN
        if kind == wire.PING:
            self._pong = _masked(wire.PONG, bytes(payload[: wire.LONGEST_CONTROL]))
        elif kind == wire.CLOSE:
            code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            reason = bytes(payload[2:]).decode(errors="replace") or None
            self.closed = Closed(code, reason)
        elif kind == wire.PONG:
            pass
        elif kind in {wire.TEXT, wire.BINARY} and self._fragments is None:
            self.text = kind == wire.TEXT
            self._fragments = bytearray(payload)
        elif kind == wire.CONTINUATION and self._fragments is not None:
            self._fragments += payload
            if len(self._fragments) > MAX_MESSAGE_SIZE:
                self.closed = Closed(TOO_BIG, "the server's message does not end")
            elif final:
                whole, self._fragments = self._fragments, None
                on_message(memoryview(whole))
        else:
            self._breach(f"the server sent a frame that begins with {opcode:#04x}")

    def _breach(self, words: str) -> None:
        self.closed = Closed(PROTOCOL_ERROR, words)

    async def goodbye(self, code: int = NORMAL) -> None:
        """Say that we leave. The answer is not waited for."""
        if self.closed is None:
            self.closed = Closed(code, "the client left")
        await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        assert self.closed is not None
        if self._said_goodbye:
            return
        code = self.closed.code if self.closed.code not in {1005, ABNORMAL_CLOSURE} else NORMAL
        with trio.move_on_after(GOODBYE_SECONDS, shield=True):
            with suppress(Closed):
                await self._write(_masked(wire.CLOSE, code.to_bytes(2)))
        self._said_goodbye = True

    async def drain(self) -> None:
        """Read on until the server closes: to close unread takes back what was sent."""
        try:
            while await self.stream.receive_some(READ_SIZE):
                pass
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _write(self, data: bytes) -> None:
        if self._said_goodbye:
            raise self.closed or Closed(ABNORMAL_CLOSURE)
        async with self._writing:
            try:
                await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise self.closed or Closed(ABNORMAL_CLOSURE) from None
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)
                raise
        self.bytes_out += len(data)

    def _end(self, code: int) -> None:
        self.closed = self.closed or Closed(code)
        raise self.closed


async def _read_into(socket: trio.socket.SocketType, view: memoryview) -> int:
    """Read without giving way afterwards: the buffer is for all."""
    while True:
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
async def open_lean(
    stream: trio.abc.Stream, host: str, resource: str, subprotocol: str | None = None
) -> AsyncIterator[LeanSocket]:
    """Shake hands on a connected stream; both are closed at the end. `DialFailed`."""
    try:
        socket = await _shake_hands(stream, host, resource, subprotocol)
        try:
            yield socket
        finally:
            with trio.move_on_after(2 * GOODBYE_SECONDS, shield=True):
                await socket.goodbye()
                await socket.drain()
    finally:
        await trio.aclose_forcefully(stream)


async def _shake_hands(
    stream: trio.abc.Stream, host: str, resource: str, subprotocol: str | None
) -> LeanSocket:
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    offers = [subprotocol] if subprotocol else []
    hello = connection.send(Request(host=host, target=resource, subprotocols=offers))
    received = bytearray()
    try:
        await stream.send_all(hello)
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > LONGEST_HEAD or not HTTP.startswith(bytes(received[:5])):
                raise DialFailed(f"{host} does not speak WebSocket")
            data = await stream.receive_some(LONGEST_HEAD)
            if not data:
                raise DialFailed(f"{host} ended the connection during the handshake")
            received += data
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        raise DialFailed(f"{host} ended the connection during the handshake") from None
    try:
        connection.receive_data(bytes(received[: end + 4]))
        events = list(connection.events())
    except wsproto.utilities.RemoteProtocolError:
        raise DialFailed(f"{host} does not speak WebSocket") from None
    match events[0] if events else None:
        case AcceptConnection(subprotocol=chosen):
            if subprotocol and chosen != subprotocol:
                raise DialFailed(f"{host} does not speak {subprotocol}")
        case RejectConnection(status_code=status):
            said = b"".join(each.data for each in events if isinstance(each, RejectData))
            words = (said or bytes(received[end + 4 :]))[:200].decode(errors="replace")
            raise DialFailed(f"{host} refused: HTTP {status} {words}".rstrip())
        case _:
            raise DialFailed(f"{host} does not speak WebSocket")
    socket = LeanSocket(stream)
    rest = bytes(received[end + 4 :])
    if rest:
        socket.take_early(memoryview(rest))
    return socket
