"""A client's end of a memory link as a stream, and one that dies where it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import trio
from attrs import define, field, frozen

from relay.client.websocket import WebSocket, open_websocket
from tests.unit.memory import SIZE, MemoryLink, MemoryRelay, link_pair

Way = Literal["up", "down"]
How = Literal["reset", "end", "silence", "deaf"]


@frozen
class Cut:
    """When so many bytes went `up` (to the relay) or `down`, the link dies, by

    reset    both sides get a TCP reset
    end      both sides get an end of file
    silence  nothing goes through any more, in either direction, and nobody is told
    deaf     nothing goes through in this one direction any more
    """

    way: Way
    at: int
    how: How


SPAN: dict[Way, int] = {"up": 1500, "down": 3800}
"""Bytes of a whole conversation."""
HOW: tuple[How, ...] = ("reset", "end", "silence", "deaf")


def cuts(step: int) -> Iterator[Cut]:
    """All over a conversation, so many bytes apart; with 1, each of them in each way."""
    for way, span in SPAN.items():
        for turn, at in enumerate(range(0, span, step)):
            for how in HOW if step == 1 else [HOW[turn % len(HOW)]]:
                yield Cut(way, max(1, at), how)


@define(eq=False)
class LinkStream(trio.abc.Stream):
    link: MemoryLink
    cut: Cut | None = None
    done: bool = False
    """Whether it was cut."""
    passed: dict[Way, int] = field(factory=lambda: {"up": 0, "down": 0})
    _deaf: set[Way] = field(factory=set)
    _closed: trio.Event = field(factory=trio.Event)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if "up" in self._deaf:
            return
        view = memoryview(data)
        rest = self._rest("up")
        await self._send(view[:rest])
        self.passed["up"] += len(view[:rest])
        if len(view) >= rest:
            self._die()

    async def _send(self, view: memoryview) -> None:
        while view:
            await self.link.wait_writable()
            try:
                view = view[self.link.send(view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise trio.BrokenResourceError from None

    async def wait_send_all_might_not_block(self) -> None:
        await self.link.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while "down" not in self._deaf:
            await self.link.wait_readable()
            buffer = memoryview(bytearray(min(max_bytes or SIZE, self._rest("down"))))
            try:
                count = self.link.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError:
                raise trio.BrokenResourceError from None
            self.passed["down"] += count
            if not self._rest("down"):
                self._die()
            return bytes(buffer[:count])
        await self._closed.wait()
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        self._closed.set()
        # What went dead tells nobody, not even that somebody left.
        if not self._deaf:
            self.link.close()
        await trio.lowlevel.checkpoint()

    def _rest(self, way: Way) -> int:
        if self.cut is None or self.done or self.cut.way != way:
            return 1 << 30
        return self.cut.at - self.passed[way]

    def _die(self) -> None:
        assert self.cut is not None
        self.done = True
        match self.cut.how:
            case "reset" | "end":
                for pipe in (self.link.incoming, self.link.outgoing):
                    pipe.end(broken=self.cut.how == "reset")
            case "silence":
                self._deaf = {"up", "down"}
            case "deaf":
                self._deaf = {self.cut.way}


@define(eq=False)
class Links:
    """Connections to a relay in memory, each with what becomes of it."""

    relay: MemoryRelay
    plan: Callable[[int], Cut | None] = field(default=lambda _number: None)
    """By the number of the connection, from 0."""
    plain: bool = False
    """Whether nobody hears that the client offers MessagePack."""
    opened: list[LinkStream] = field(factory=list)

    @property
    def cuts(self) -> int:
        return sum(stream.done for stream in self.opened)

    @asynccontextmanager
    async def dial(self, subprotocols: Sequence[str]) -> AsyncIterator[WebSocket]:
        server_end, client_end = link_pair()
        stream = LinkStream(client_end, self.plan(len(self.opened)))
        self.opened.append(stream)
        self.relay.accept(server_end)
        async with open_websocket(stream, "relay", "/streams/subscribe", subprotocols) as socket:
            yield socket
