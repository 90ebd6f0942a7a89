"""What the actors of one process share: the clock, the target, the book. Floor 6."""

from __future__ import annotations

import socket as sockets
import ssl
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
from relay.load.groups import Group, Network
from relay.load.network import RESET, ShapedLink, is_plain, open_network
from relay.load.peer import MSGPACK, Hears, Peer
from relay.load.schedule import Presence, Timeline
from relay.load.socket import LeanSocket, open_lean
from relay.load.trust import Trust
from relay.transport.dial import Closed, open_plain, secure


class TornOff(DialFailed):
    """The scenario tore a connection off before it was open."""


MOST_WINDOWS = 200_000
PATHS = {True: "/streams/register", False: "/streams/subscribe"}


@frozen
class Address:
    """Where the relay is, and the tokens for it."""

    url: str
    tokens: tuple[str, ...] = field(repr=False)
    service_tokens: tuple[str, ...] = field(repr=False, default=())
    trust: Trust = field(factory=Trust)

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
    _opening: dict[str, set[_Opening]] = field(factory=lambda: defaultdict(set))
    _tls: ssl.SSLContext | None = None

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

    def tls(self) -> ssl.SSLContext:
        """Of all connections: it is dear to make."""
        if self._tls is None:
            self._tls = self.address.trust.context()
        return self._tls

    def cut(self, name: str) -> None:
        """Tear off all connections of a group, also those that are about to be opened."""
        for opening in tuple(self._opening[name]):
            cut(opening.stream)
            opening.was_cut = True
        for peer in tuple(self._open[name]):
            cut(peer.socket.stream)
            peer.was_cut = True

    @asynccontextmanager
    async def connect(
        self, name: str, *, random: Random, hears: Hears, msgpack: bool, phone: bool
    ) -> AsyncIterator[Peer]:
        """A connection, shaped as its group's are; not authenticated yet. `DialFailed`."""
        stream, host, resource = await open_plain(
            self.address.url,
            receive_buffer=SHAPED_RECEIVE_BUFFER if self._network(name).bandwidth else None,
        )
        if resource == "/":
            resource = PATHS[phone]
        async with _ungrouped(self._shaped(name, stream, random)) as link:
            opening = _Opening(link)
            self._opening[name].add(opening)
            try:
                async with self._websocket(link, host, resource, msgpack=msgpack) as socket:
                    self._opening[name].discard(opening)
                    with self._counted(name, Peer(socket, msgpack, hears)) as peer:
                        yield peer
            except DialFailed:
                if opening.was_cut or was_cut(link):
                    raise TornOff from None
                raise
            finally:
                self._opening[name].discard(opening)

    @asynccontextmanager
    async def _shaped(
        self, name: str, stream: trio.abc.Stream, random: Random
    ) -> AsyncIterator[trio.abc.Stream]:
        """The network of the group before a stream, unless it is perfect."""
        if isinstance(stream, trio.SocketStream) and is_plain(self._network(name)):
            try:
                yield stream
            finally:
                await trio.aclose_forcefully(stream)
            return
        async with open_network(stream, partial(self._network, name), random) as link:
            yield link

    @asynccontextmanager
    async def _websocket(
        self, link: trio.abc.Stream, host: str, resource: str, *, msgpack: bool
    ) -> AsyncIterator[LeanSocket]:
        url = self.address.url
        tls = self.tls() if is_encrypted(url) else None
        stream = await secure(link, url, tls)
        async with open_lean(stream, host, resource, MSGPACK if msgpack else None) as socket:
            yield socket

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


@define(eq=False)
class _Opening:
    """A connection that shakes hands."""

    stream: trio.abc.Stream
    was_cut: bool = False


def is_encrypted(url: str) -> bool:
    return url.startswith(("wss:", "https:"))


def was_cut(stream: trio.abc.Stream) -> bool:
    """Whether the network tore it off by itself."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return isinstance(stream, ShapedLink) and stream.was_cut


def cut(stream: trio.abc.Stream) -> None:
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
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


__all__ = [
    "Address",
    "Presence",
    "Raised",
    "Sent",
    "Stage",
    "TornOff",
    "Window",
    "cut",
    "is_encrypted",
    "was_cut",
]
