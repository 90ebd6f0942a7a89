"""What a client of the load test says and hears, in either encoding. Floor 6.

Requests and everything that is rare is waited for in order; frames are handed on in the middle of
a read, without a copy, a task switch or an object that outlives them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
from attrs import define, field

from relay.client import ServerError
from relay.load.socket import LeanSocket
from relay.transport.dial import Closed

MSGPACK = "relay.v1.msgpack"
LAST_WORDS_SECONDS = 1.0


class Heard(msgspec.Struct, rename="camel", gc=False):
    """Any message of the server, as far as it matters here."""

    type: str
    id: int | str | None = None
    stream_id: str | None = None
    seq: int = 0
    data: memoryview | None = None
    """Valid only while the message is handed on."""
    code: str | None = None
    message: str | None = None
    alert_id: int | None = None
    retry_after: int | None = None


Hears = Callable[[Heard, int], None]
"""Called with each frame, alert, notice and unasked error, and its size."""


def _ignore(_heard: Heard, _size: int) -> None:
    pass


@define(eq=False)
class Peer:
    """An open connection; `token` goes into `auth` and nowhere else."""

    socket: LeanSocket
    msgpack: bool
    hears: Hears = _ignore
    goodbye: ServerError | None = None
    """The error or notice that came last, if nothing came after it."""
    unreadable: int = 0
    was_cut: bool = False
    """Whether we tore it off."""
    acks: list[dict[str, Any]] = field(factory=list)
    """To be sent after the read that made them due."""
    _decode: Callable[[memoryview], Heard] = field(init=False)
    _encode: Callable[[Any], bytes] = field(init=False)
    _last_id: int = 0
    _answers: dict[int | str, Heard | None] = field(factory=dict)
    _answered: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _listening: bool = False

    def __attrs_post_init__(self) -> None:
        if self.msgpack:
            self._decode = msgspec.msgpack.Decoder(Heard).decode
            self._encode = msgspec.msgpack.Encoder().encode
        else:
            self._decode = msgspec.json.Decoder(Heard).decode
            self._encode = msgspec.json.Encoder().encode

    async def say(self, kind: str, **fields: Any) -> None:
        """Send a message; bytes become base64 in JSON. `Closed`."""
        content = self._encode({"type": kind, **fields})
        await self.socket.send(content if self.msgpack else content.decode())

    async def ask(self, kind: str, **fields: Any) -> Heard:
        """Send a request; its `success`, or `ServerError`, or `Closed`."""
        self._last_id += 1
        request = self._last_id
        self._answers[request] = None
        try:
            await self.say(kind, id=request, **fields)
            while (answer := self._answers[request]) is None:
                if not self._listening:
                    await self.read()
                elif self.socket.closed is not None:
                    raise self.socket.closed
                else:
                    await self._answered.park()
        finally:
            del self._answers[request]
        if answer.type == "error":
            raise ServerError(answer.code or "?", answer.message or "", answer.retry_after)
        return answer

    async def read(self) -> None:
        """Take what comes next; `Closed` at the end."""
        await self.socket.read(self._take)
        if self.acks and self.socket.closed is None:
            acks = self.acks.copy()
            self.acks.clear()
            for ack in acks:
                await self.say("ack", **ack)

    async def listen(self) -> None:
        """Take everything that comes until the end; returns then."""
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
        """Take what comes while the block does something else; the end of the connection ends it.

        A block that raises `Closed` first hears what the server had to say.
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
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
        if failure is not None and self.socket.closed is None:
            self.socket.closed = failure

    def _take(self, payload: memoryview) -> None:
        try:
            heard = self._decode(payload)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self.unreadable += 1
            return
        answers = heard.id is not None and heard.id in self._answers
        if heard.type in {"error", "notice"}:
            self.goodbye = ServerError(heard.code or "?", heard.message or "", heard.retry_after)
        else:
            self.goodbye = None
        if answers:
            assert heard.id is not None
            self._answers[heard.id] = heard
            self._answered.unpark_all()
        else:
            self.hears(heard, len(payload))
