"""What all actors of one process share: the clock, the targets, the statistics, the connections."""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from random import Random
from typing import Any

import trio
from attrs import define, field

from relay.client import DialFailed, ServerError
from relay.client.dial import open_plain, secure, with_stream
from relay.client.errors import Closed
from relay.client.shaping import SHAPED_RECEIVE_BUFFER
from relay.client.websocket import open_websocket
from relay.load.actors.allowance import Allowance
from relay.load.actors.network.client import MSGPACK_SUBPROTOCOL, LoadClient, OnIncoming
from relay.load.actors.network.endpoint import Endpoint, is_encrypted, path_or_default
from relay.load.actors.network.group_networks import GroupNetworks
from relay.load.actors.network.shaped_link import cut, open_network, was_cut
from relay.load.actors.own_load import OwnLoad
from relay.load.actors.sent_files import SentFiles
from relay.load.measures.reconciliation.observations import Observations
from relay.load.measures.stats import GroupStats
from relay.load.measures.watch_time import WatchTime
from relay.load.scenario.groups import Group, Network
from relay.load.scenario.schedule import Timeline


class ConnectionCut(DialFailed):
    """The scenario cut a connection before it was open."""


@define(eq=False)
class RunContext:
    """One process's part of a run."""

    timeline: Timeline
    endpoint: Endpoint
    run: str
    """Identifies the run; 8 characters."""
    epoch: float = 0.0
    """Trio's time at the start of the run; set when everything is ready."""
    parts: dict[tuple[str, str], GroupStats] = field(factory=dict)
    """By group and target; the target is empty where it does not matter."""
    observations: Observations = field(factory=Observations)
    watch_times: dict[str, WatchTime] = field(factory=dict)
    """By group."""
    own_load: OwnLoad = field(factory=OwnLoad)
    files: SentFiles | None = None
    """The content of all files; None to read them where the scenario says that they are."""
    allowance: Allowance | None = None
    """None if there are no caps."""
    is_background: bool = False
    """Whether this process plays the groups in the background."""
    networks: GroupNetworks = field(init=False)
    _open: dict[str, set[LoadClient]] = field(factory=lambda: defaultdict(set))
    _handshakes: dict[str, set[_Handshake]] = field(factory=lambda: defaultdict(set))
    _tls: ssl.SSLContext | None = None

    def __attrs_post_init__(self) -> None:
        self.networks = GroupNetworks(self.timeline, self.files)

    @property
    def run_id(self) -> bytes:
        return self.run.encode()

    def now(self) -> float:
        """Seconds since the start of the run."""
        return trio.current_time() - self.epoch

    async def until(self, due: float) -> None:
        """Wait for a moment of the run; a late wake-up counts as lateness of the generator."""
        if self.now() >= due:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep_until(self.epoch + due)
        self.note_lateness(self.now() - due)

    def note_lateness(self, seconds: float) -> None:
        """Note how late this process is with something. In the background that is no harm."""
        name = "background_lateness" if self.is_background else "lateness"
        self.stats("generator").time(name).record(seconds)

    def spend(self, messages: int = 1) -> None:
        """Count what is sent to a target; `LimitReached`."""
        if self.allowance is not None:
            self.allowance.spend(messages)

    def counted_connection(self) -> AbstractContextManager[None]:
        """Count a connection to a target while the block runs; `LimitReached`."""
        return nullcontext() if self.allowance is None else self.allowance.connection()

    def stats(self, name: str, target: str = "") -> GroupStats:
        """The statistics of a group, of those of its actors that use this target."""
        found = self.parts.get((name, target))
        if found is None:
            found = self.parts[name, target] = GroupStats()
        return found

    def group(self, name: str) -> Group:
        """A group as the current stage defines it."""
        return self.timeline.group_in(name, self.timeline.stage_at(self.now()))

    def count_watched(self, name: str, change: int) -> None:
        """So many more streams are watched by a group from now on."""
        if change:
            if name not in self.watch_times:
                self.watch_times[name] = WatchTime(self.timeline.end)
            counts = self.stats(name).counts
            self.watch_times[name].change(counts, self.now(), change)

    def stream_id(self, phones: str, number: int) -> str:
        return f"load-{self.run}-{phones}-{number}"

    def tls(self, url: str) -> ssl.SSLContext | None:
        """One context for all connections, because it is expensive to make; None without TLS."""
        if self._tls is None:
            self._tls = self.endpoint.tls_verification.context_for(url)
        return self._tls if is_encrypted(url) else None

    def cut(self, name: str) -> None:
        """Cut all connections of a group, including those in their handshake."""
        for handshake in tuple(self._handshakes[name]):
            cut(handshake.stream)
            handshake.was_cut = True
        for client in tuple(self._open[name]):
            cut(client.socket.stream)
            client.was_cut = True

    @asynccontextmanager
    async def connect(
        self,
        name: str,
        target: str,
        *,
        number: int,
        random: Random,
        on_message: OnIncoming,
        msgpack: bool,
        phone: bool,
        stream_id: str | None = None,
        local_address: str | None = None,
    ) -> AsyncIterator[LoadClient]:
        """Connect an actor to a target over its network, without authenticating. `DialFailed`.

        The URL names the stream, if there is one."""
        url = self.endpoint.urls[target]
        with self.counted_connection():
            stream, host, resource = await open_plain(
                url,
                receive_buffer=SHAPED_RECEIVE_BUFFER if self.networks.is_narrow(name) else None,
                local_address=local_address,
            )
            resource = with_stream(path_or_default(resource, phone=phone), stream_id)
            async with _ungrouped(self._shaped(name, number, stream, random)) as link:
                handshake = _Handshake(link)
                self._handshakes[name].add(handshake)
                try:
                    stream = await secure(link, url, self.tls(url))
                    async with open_websocket(
                        stream,
                        host,
                        resource,
                        required_subprotocol=MSGPACK_SUBPROTOCOL if msgpack else None,
                    ) as socket:
                        self._handshakes[name].discard(handshake)
                        opened = LoadClient(socket, msgpack, on_message)
                        stats = self.stats(name, target)
                        with _CountedConnection(stats, self._open[name], opened) as client:
                            yield client
                except DialFailed:
                    if handshake.was_cut or was_cut(link):
                        raise ConnectionCut from None
                    raise
                finally:
                    self._handshakes[name].discard(handshake)

    @asynccontextmanager
    async def open_raw(
        self, target: str, local_address: str | None = None
    ) -> AsyncIterator[tuple[trio.abc.Stream, str]]:
        """Connect to a target and say nothing; the stream, and the target's host. `DialFailed`."""
        url = self.endpoint.urls[target]
        with self.counted_connection():
            stream, host, _ = await open_plain(url, local_address=local_address)
            stream = await secure(stream, url, self.tls(url))
            try:
                yield stream, host
            finally:
                await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def _shaped(
        self, name: str, number: int, stream: trio.abc.Stream, random: Random
    ) -> AsyncIterator[trio.abc.Stream]:
        """Put an actor's network in front of a stream, unless it is perfect at all times."""
        if isinstance(stream, trio.SocketStream) and self.networks.is_perfect(name):
            try:
                yield stream
            finally:
                await trio.aclose_forcefully(stream)
            return
        async with open_network(stream, partial(self._network_at, name, number), random) as link:
            yield link

    def _network_at(self, name: str, number: int, at: float) -> tuple[Network, float]:
        network, until = self.networks.at(name, number, at - self.epoch)
        return network, self.epoch + until


@define(eq=False)
class _CountedConnection:
    """Counts a connection while it is open, and its bytes when it ends."""

    stats: GroupStats
    open: set[LoadClient]
    client: LoadClient

    def __enter__(self) -> LoadClient:
        self.stats.connected += 1
        self.open.add(self.client)
        return self.client

    def __exit__(self, *_: object) -> None:
        self.open.discard(self.client)
        self.stats.connected -= 1
        self.stats.counts["bytes.in"] += self.client.socket.bytes_in
        self.stats.counts["bytes.out"] += self.client.socket.bytes_out
        if self.client.unreadable:
            self.stats.counts["errors"] += self.client.unreadable
            self.stats.error("a message that cannot be read")


@define(eq=False)
class _Handshake:
    """A connection whose WebSocket is not open yet."""

    stream: trio.abc.Stream
    was_cut: bool = False


@asynccontextmanager
async def _ungrouped(manager: Any) -> AsyncIterator[Any]:
    """Enter a manager that has a nursery; an expected error of the body is raised ungrouped."""
    failure: BaseException | None = None
    async with manager as value:
        try:
            yield value
        except (Closed, DialFailed, ServerError) as error:
            failure = error
    if failure is not None:
        raise failure
