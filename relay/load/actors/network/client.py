"""One connection of a load test: it sends requests and receives messages, in either encoding.

A request waits for its answer. Frames are passed on during the read, without a copy, a task switch
or an object that outlives them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import trio
from attrs import define, field

from relay.client import ServerError
from relay.client.errors import Closed
from relay.client.websocket import WebSocket

MSGPACK_SUBPROTOCOL = "relay.v1.msgpack"
LAST_MESSAGES_TIMEOUT = 1.0


WireNumber = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""What counts are made of; a message with a larger number cannot be read."""


class IncomingMessage(msgspec.Struct, rename="camel", gc=False):
    """Any message of the relay, with the fields that a load test uses."""

    type: str
    id: int | str | None = None
    stream_id: str | None = None
    seq: WireNumber = 0
    epoch: WireNumber = 0
    layer: str | None = None
    layers: list[str] | None = None
    data: memoryview | None = None
    """Valid only until the handler returns."""
    metadata: msgspec.Raw = msgspec.Raw()
    """Likewise; empty if there is none."""
    code: str | None = None
    message: str | None = None
    frames: int = 0
    """In `received`: how many of the connection have come."""
    alert_id: int | None = None
    retry_after: int | None = None


class FrameMetadata(msgspec.Struct):
    """What phones say of pictures of which the relay may make smaller ones."""

    mark: str | None = None


OnIncoming = Callable[[IncomingMessage, int], None]
"""Is called with each message that answers no request, and its size in bytes."""


def _ignore(_incoming: IncomingMessage, _size: int) -> None:
    pass


@define(eq=False)
class LoadClient:
    """An open connection of one actor."""

    socket: WebSocket
    msgpack: bool
    on_message: OnIncoming = _ignore
    goodbye: ServerError | None = None
    """The last error or notice, if no other message followed it."""
    unreadable: int = 0
    was_cut: bool = False
    """Whether the scenario cut it."""
    acks: list[dict[str, Any]] = field(factory=list)
    """Acknowledgements to send after the current read."""
    _decode: Callable[[memoryview], IncomingMessage] = field(init=False)
    _encode: Callable[[Any], bytes] = field(init=False)
    _last_id: int = 0
    _answers: dict[int | str, IncomingMessage | None] = field(factory=dict)
    _answered: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _listening: bool = False

    def __attrs_post_init__(self) -> None:
        if self.msgpack:
            self._decode = msgspec.msgpack.Decoder(IncomingMessage).decode
            self._encode = msgspec.msgpack.Encoder().encode
        else:
            self._decode = msgspec.json.Decoder(IncomingMessage).decode
            self._encode = msgspec.json.Encoder().encode

    def sealed_mark(self, frame: IncomingMessage) -> str | None:
        """The mark that a frame carries in its metadata, if there is one."""
        decode = msgspec.msgpack.decode if self.msgpack else msgspec.json.decode
        try:
            return decode(frame.metadata, type=FrameMetadata).mark
        except (msgspec.DecodeError, ValueError):
            return None

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a message; bytes become base64 in JSON. `Closed`."""
        content = self._encode({"type": kind, **fields})
        await self.socket.send(content if self.msgpack else content.decode())

    async def request(self, kind: str, **fields: Any) -> IncomingMessage:
        """Send a request and return its `success`; `ServerError`, `Closed`."""
        self._last_id += 1
        request_id = self._last_id
        self._answers[request_id] = None
        try:
            await self.send(kind, id=request_id, **fields)
            while (answer := self._answers[request_id]) is None:
                if not self._listening:
                    await self.read()
                elif self.socket.closed is not None:
                    raise self.socket.closed
                else:
                    await self._answered.park()
        finally:
            del self._answers[request_id]
        if answer.type == "error":
            raise ServerError(answer.code or "?", answer.message or "", answer.retry_after)
        return answer

    async def read(self) -> None:
        """Handle the messages of one read; `Closed` at the end."""
        await self.socket.read(self._receive)
        if self.acks and self.socket.closed is None:
            acks = self.acks.copy()
            self.acks.clear()
            for ack in acks:
                await self.send("ack", **ack)

    async def listen(self) -> None:
        """Handle messages until the connection ends."""
        self._listening = True
        try:
            while True:
                await self.read()
        except Closed:
            pass
        finally:
            self._listening = False
            self._answered.unpark_all()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Handle messages while the block runs. The end of the connection cancels the block.

        If the block raises `Closed`, the last messages of the relay are still received.
        """
        failure: Closed | None = None
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                await self.listen()
                nursery.cancel_scope.cancel()

            self._listening = True
            nursery.start_soon(listen)
            try:
                yield
                nursery.cancel_scope.cancel()
            except Closed as closed:
                failure = closed
                nursery.cancel_scope.deadline = trio.current_time() + LAST_MESSAGES_TIMEOUT
        if failure is not None and self.socket.closed is None:
            self.socket.closed = failure

    def _receive(self, payload: memoryview) -> None:
        try:
            incoming = self._decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self.unreadable += 1
            return
        answers = incoming.id is not None and incoming.id in self._answers
        if incoming.type in {"error", "notice"}:
            self.goodbye = ServerError(
                incoming.code or "?", incoming.message or "", incoming.retry_after
            )
        else:
            self.goodbye = None
        if answers:
            assert incoming.id is not None
            self._answers[incoming.id] = incoming
            self._answered.unpark_all()
        else:
            self.on_message(incoming, len(payload))
