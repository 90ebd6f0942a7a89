"""What the actors of one process share: the clock, the target, the book. Floor 6."""

from __future__ import annotations

import socket as sockets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from random import Random
from typing import Any

import trio
from attrs import define, field, frozen

from relay.client import DialFailed, ServerError
from relay.client.shaping import SHAPED_RECEIVE_BUFFER
from relay.load.figures import Book, Figures
from relay.load.network import RESET, ShapedLink, is_plain, open_network
from relay.load.peer import MSGPACK, Hears, Peer
from relay.load.scenario import Group, Network
from relay.load.schedule import Presence, Timeline
from relay.load.socket import open_lean
from relay.transport.dial import Closed, open_stream

MOST_WINDOWS = 200_000
PATHS = {True: "/streams/register", False: "/streams/subscribe"}


@frozen
class Address:
    """Where the relay is, and the tokens for it."""

    url: str
    tokens: tuple[str, ...] = field(repr=False)
    service_tokens: tuple[str, ...] = field(repr=False, default=())

    def token(self, number: int, *, service: bool = False) -> str:
        tokens = self.service_tokens if service and self.service_tokens else self.tokens
        return tokens[number % len(tokens)]


@frozen
class Window:
    """What one client saw of one stream on one connection."""

    group: str
    stream: str
    start: float
    end: float
    watched: bool
    """Whether it watched the frames, and not just the alerts."""
    first: int | None
    last: int | None
    alerts: dict[str, list[list[int]]]
    """By sender, the ranges of numbers."""


@frozen
class Sent:
    """What a phone sent on one connection."""

    stream: str
    start: float
    end: float
    first: int
    last: int


@frozen
class Raised:
    """An alert that was acknowledged."""

    sender: str
    stream: str
    number: int
    due: float
    accepted: float


@define(eq=False)
class Stage:
    """One process's part of a run."""

    timeline: Timeline
    address: Address
    run: str
    """Names the run; 8 characters."""
    epoch: float = 0.0
    """Trio's time at the start of the run; set when all is ready."""
    book: Book = field(factory=Book)
    windows: list[Window] = field(factory=list)
    sent: list[Sent] = field(factory=list)
    raised: list[Raised] = field(factory=list)
    _open: dict[str, set[Peer]] = field(factory=lambda: defaultdict(set))

    @property
    def run_id(self) -> bytes:
        return self.run.encode()

    def now(self) -> float:
        """Seconds since the start of the run."""
        return trio.current_time() - self.epoch

    async def until(self, due: float) -> None:
        """Wait for a moment; how late we wake is the generator's own fault and is counted."""
        if self.now() >= due:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep_until(self.epoch + due)
        self.book.group("generator").time("lateness").record(self.now() - due)

    def group(self, name: str) -> Group:
        """As the group is now."""
        return self.timeline.group_in(name, self.timeline.stage_at(self.now()))

    def stream_id(self, phones: str, number: int) -> str:
        return f"load-{self.run}-{phones}-{number}"

    def add_window(self, window: Window) -> None:
        if len(self.windows) < MOST_WINDOWS:
            self.windows.append(window)

    def cut(self, name: str) -> None:
        """Tear off all connections of a group."""
        for peer in tuple(self._open[name]):
            cut(peer.socket.stream)
            peer.was_cut = True

    @asynccontextmanager
    async def connect(
        self, name: str, *, random: Random, hears: Hears, msgpack: bool, phone: bool
    ) -> AsyncIterator[Peer]:
        """A connection, shaped as its group's are; not authenticated yet. `DialFailed`."""
        stream, host, resource = await open_stream(
            self.address.url,
            receive_buffer=SHAPED_RECEIVE_BUFFER if self._network(name).bandwidth else None,
        )
        if resource == "/":
            resource = PATHS[phone]
        if isinstance(stream, trio.SocketStream) and is_plain(self._network(name)):
            opening: Any = open_lean(stream, host, resource, MSGPACK if msgpack else None)
            async with opening as socket:
                with self._counted(name, Peer(socket, msgpack, hears)) as peer:
                    yield peer
            return
        async with (
            _ungrouped(open_network(stream, partial(self._network, name), random)) as link,
            open_lean(link, host, resource, MSGPACK if msgpack else None) as socket,
        ):
            with self._counted(name, Peer(socket, msgpack, hears)) as peer:
                yield peer

    def _counted(self, name: str, peer: Peer) -> _Counted:
        return _Counted(self.book.group(name), self._open[name], peer)

    def _network(self, name: str) -> Network:
        return self.group(name).network


@define(eq=False)
class _Counted:
    """A connection that is open, and its bytes when it no longer is."""

    figures: Figures
    open: set[Peer]
    peer: Peer

    def __enter__(self) -> Peer:
        self.figures.connected += 1
        self.open.add(self.peer)
        return self.peer

    def __exit__(self, *_: object) -> None:
        self.open.discard(self.peer)
        self.figures.connected -= 1
        self.figures.counts["bytes.in"] += self.peer.socket.bytes_in
        self.figures.counts["bytes.out"] += self.peer.socket.bytes_out
        if self.peer.unreadable:
            self.figures.counts["errors"] += self.peer.unreadable
            self.figures.error("a message that cannot be read")


def cut(stream: trio.abc.Stream) -> None:
    if isinstance(stream, ShapedLink):
        stream.cut()
    elif isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, RESET)
        stream.socket.close()


@asynccontextmanager
async def _ungrouped(manager: Any) -> AsyncIterator[Any]:
    """A manager with a nursery inside, out of which one error of the body comes as it is."""
    failure: BaseException | None = None
    async with manager as value:
        try:
            yield value
        except (Closed, DialFailed, ServerError) as error:
            failure = error
    if failure is not None:
        raise failure


__all__ = ["Address", "Presence", "Raised", "Sent", "Stage", "Window", "cut"]
