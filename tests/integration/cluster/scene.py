"""Phones that send numbered frames to one node after the other, and viewers that note all."""

from __future__ import annotations

import base64
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count, pairwise
from typing import Any

import trio
from attrs import define, field, frozen
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id, open_peer
from tests.integration.relay_process import RelayProcess, start_relay, until

CLUSTER = ("--cluster-bind", "127.0.0.1:0")
PAUSE = 0.03
"""Seconds between two frames of a phone."""
BUSY_GAP = 4
"""Steps of `seq` from one frame to the next of a viewer who does not have the processor at once."""


@contextmanager
def start_nodes(database_url: str, count: int = 3, *more: str) -> Iterator[list[RelayProcess]]:
    """Relays on one database, each its own machine."""
    with _started(database_url, count, more) as nodes:
        yield nodes


@contextmanager
def _started(url: str, count: int, more: Sequence[str]) -> Iterator[list[RelayProcess]]:
    if count == 0:
        yield []
        return
    with (
        start_relay(*CLUSTER, *more, database_url=url) as first,
        _started(url, count - 1, more) as others,
    ):
        yield [first, *others]


@frozen
class Seen:
    """A frame as a viewer got it."""

    epoch: int
    seq: int
    number: int
    """Of the frame, as its phone counted."""
    at: float
    """When it came, by Trio's clock."""


@define(eq=False)
class Phone:
    """A connection that sends numbered frames until it is closed."""

    peer: Peer
    numbers: Iterator[int]
    """Shared by the connections of one phone."""
    epoch: int = 0
    size: int = 100
    pause: float = PAUSE
    statuses: list[Message] = field(factory=list)
    closed: tuple[int | None, str | None] | None = None
    sent: dict[int, float] = field(factory=dict)
    """When each frame was sent, by its number."""
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen)
                    await self._send()
        except* ConnectionClosed:
            self.closed = self.peer.socket.close_code, self.peer.socket.close_reason

    @property
    def first(self) -> int:
        """The number of its first frame."""
        return min(self.sent)

    async def until_closed(self) -> None:
        await until(lambda: self.closed is not None)

    async def until_watched_by(self, viewers: int) -> None:
        await until(lambda: bool(self.statuses) and self.statuses[-1]["consumers"] == viewers)

    async def lose_radio(self) -> None:
        """Be gone without a word."""
        self._scope.cancel()
        linger = struct.pack("ii", 1, 0)
        stream = self.peer.socket.stream
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await trio.aclose_forcefully(stream)

    async def _listen(self) -> None:
        while True:
            message = await self.peer.receive()
            if message["type"] == "status":
                self.statuses.append(message)

    async def _send(self) -> None:
        for number in self.numbers:
            self.sent[number] = trio.current_time()
            await self.peer.send_frame(b"%d " % number + b"x" * self.size)
            await trio.sleep(self.pause)


@define(eq=False)
class Viewer:
    """A connection that watches one stream, and what it gets."""

    peer: Peer
    epoch: int = 0
    frames: list[Seen] = field(factory=list)
    statuses: list[tuple[str, int]] = field(factory=list)
    """Each with its epoch."""
    heard: trio.Event = field(factory=trio.Event)
    """Set and replaced with each message."""

    async def run(self) -> None:
        with trio.CancelScope():
            try:
                while True:
                    self._take(await self.peer.receive())
            except ConnectionClosed:
                pass

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "status":
                self.statuses.append((message["status"], message["epoch"]))
                self.epoch = message["epoch"] or self.epoch
            case "success" if message["code"] == "SUBSCRIBED":
                self.epoch = message["epoch"]
            case "video-frame":
                data = message["data"]
                if isinstance(data, str):
                    data = base64.b64decode(data)
                number = int(data.split()[0])
                now = trio.current_time()
                self.frames.append(Seen(self.epoch, message["seq"], number, now))
        self.heard.set()
        self.heard = trio.Event()

    async def until(self, condition: Callable[[], Any]) -> None:
        with trio.fail_after(30):
            while not condition():
                await self.heard.wait()

    async def until_status(self, status: str) -> None:
        await self.until(lambda: self.statuses[-1][0] == status)

    async def see(self, how_many: int = 1) -> Seen:
        """Wait for so many more frames; returns the last one."""
        before = len(self.frames)
        await self.until(lambda: len(self.frames) >= before + how_many)
        return self.frames[-1]

    async def see_number(self, number: int) -> Seen:
        """Wait for a frame with this number or a later one; returns the first one."""
        await self.until(lambda: self.frames and self.frames[-1].number >= number)
        return next(each for each in self.frames if each.number >= number)

    @property
    def missed(self) -> int:
        """Frames between the first and the last one that did not come."""
        return sum(after.seq - before.seq - 1 for before, after in pairwise(self.frames))

    def check_order(self) -> None:
        """Nothing came twice, and nothing old behind what is newer."""
        for before, after in pairwise(self.frames):
            assert after.number > before.number, (before, after)
            assert (after.epoch, after.seq) > (before.epoch, before.seq), (before, after)

    def check_noticed_nothing(self, *, gap: int = BUSY_GAP) -> None:
        """The stream went on in its epoch, without a change of status or a gap, but for what a busy
        machine costs any viewer."""
        self.check_order()
        assert len({each.epoch for each in self.frames}) == 1
        assert "offline" not in [status for status, _ in self.statuses[1:]]
        for before, after in pairwise(self.frames):
            assert after.seq - before.seq <= gap, (before, after)


@define(eq=False)
class Scene:
    """One user with one stream."""

    accounts: Accounts
    nursery: trio.Nursery
    _stack: AsyncExitStack
    stream_id: str = field(factory=new_stream_id)
    token: str = ""
    numbers: Iterator[int] = field(factory=lambda: count(1))

    def __attrs_post_init__(self) -> None:
        self.token = self.token or self.accounts.session("ann")

    async def log_in(self, node: RelayProcess, token: str | None = None, **options: Any) -> Peer:
        return await self._stack.enter_async_context(login(node, token or self.token, **options))

    async def open(self, node: RelayProcess) -> Peer:
        return await self._stack.enter_async_context(open_peer(node))

    async def phone(
        self,
        node: RelayProcess,
        *,
        peer: Peer | None = None,
        stream_id: str | None = None,
        **options: Any,
    ) -> Phone:
        """A phone that has registered the stream and sends frames."""
        peer = peer or await self.log_in(node)
        stream_id = stream_id or self.stream_id
        reply = await peer.ask({"type": "register", "streamId": stream_id})
        assert reply["code"] == "REGISTERED", reply
        phone = Phone(peer, self.numbers, reply["epoch"], **options)
        self.nursery.start_soon(phone.run)
        await until(lambda: bool(phone.sent))
        return phone

    async def viewer(
        self,
        node: RelayProcess,
        token: str | None = None,
        *,
        msgpack: bool = False,
        **terms: Any,
    ) -> Viewer:
        peer = await self.log_in(node, token, msgpack=msgpack)
        return await self.watch(peer, **terms)

    async def watch(self, peer: Peer, **terms: Any) -> Viewer:
        viewer = Viewer(peer)
        consumes = ["video-frame", "alert"]
        request = {"type": "subscribe", "streamId": self.stream_id, "consumes": consumes}
        await peer.send({**request, **terms})
        self.nursery.start_soon(viewer.run)
        await viewer.until(lambda: viewer.statuses)
        return viewer


@asynccontextmanager
async def open_scene(accounts: Accounts, **fields: Any) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        yield Scene(accounts, nursery, stack, **fields)
        nursery.cancel_scope.cancel()


def row_of(accounts: Accounts, stream_id: str) -> tuple[Any, ...] | None:
    """Node, term, epoch and status of a live stream, as the nodes share them."""
    rows = accounts.execute(
        "select node_id, term, epoch, status from relay.live_streams where stream_id = %s",
        stream_id,
    )
    return rows[0] if rows else None


async def until_row(
    accounts: Accounts, stream_id: str, condition: Callable[[tuple[Any, ...] | None], bool]
) -> None:
    async def so() -> bool:
        return condition(await trio.to_thread.run_sync(row_of, accounts, stream_id))

    await until(so)


def node_id_of(node: RelayProcess) -> str:
    """The id of a node, as it says itself in its log."""
    line = next(each for each in node.log.splitlines() if "this is a node" in each)
    words = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return words["node"]


async def lost_on_the_way_to(node: RelayProcess) -> int:
    """Frames that a node did not get though it had viewers of them, as it counts them."""
    body = (await node.get("/metrics")).body.decode()
    found = re.search(r'hop_frames_total{direction="in",outcome="lost"} (\S+)', body)
    assert found
    return int(float(found[1]))
