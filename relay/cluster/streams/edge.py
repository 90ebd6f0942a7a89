"""An edge: carries the streams of one other node to the viewers here, over one link."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Literal, cast

import structlog
import trio
from attrs import define, field, frozen

from relay.client.errors import Closed
from relay.client.websocket import WebSocket
from relay.cluster.streams.arrived_frame import ArrivedFrame, read_from_origin, stream_of
from relay.cluster.streams.messages import (
    LINK_PROTOCOL_VERSION,
    DropStream,
    FromEdge,
    FromOrigin,
    Hello,
    Leaving,
    LinkAnswer,
    LinkQuestion,
    Lost,
    Moved,
    NoLinkMessage,
    Ping,
    Pong,
    StreamState,
    Taken,
    TakeStream,
    encode,
)
from relay.cluster.streams.remote_producer import RemoteProducer, demand_of
from relay.concurrency.wakeup import Wakeup
from relay.guard.throttle import DebtBucket
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.remote import Epoch, RemoteState
from relay.hub.stream import Stream
from relay.metrics import HopMetrics
from relay.protocol.messages import CarriedFrame

LINK_PING_INTERVAL, LINK_SILENCE = 2.0, 6.0
"""Seconds between two signs of life of the edge, and after which a silent link is dead."""
LINK_IDLE_TIMEOUT = 10.0
"""Seconds for which a link stays open that nobody needs."""
TAKE_TIMEOUT = 1.0
"""Seconds for the former node of a stream to say what it knows."""
QUESTION_TIMEOUT = 1.0
"""Seconds for a node to answer a question, the time to open a link included."""
MAX_UNSENT_MESSAGES = 100_000
RENEWED_CARRY_RATE, MAX_RENEWED_CARRIES = 1.0, 8.0
"""How often a second, and in a row, a stream is asked for again that nobody wanted any more: each
time its last frame crosses, so viewers that come and go must not fill the link."""
MAX_DROPPED_STREAMS = 10_000
"""Streams whose requests are counted like that; the earliest are forgotten."""


log = structlog.get_logger()


@define(eq=False)
class OriginLink:
    """The link to the origin of streams that are wanted here."""

    node_id: str
    _streams: ClusterStreams
    _metrics: HopMetrics
    own_id: str
    """Of this node."""
    on_moved: Callable[[str, Moved], object]
    """Called with the id of the other node, about a stream that is not there."""
    on_ready: Callable[[], object] = lambda: None
    """Called when the other side has said hello."""
    other_version: int | None = None
    """Of the link, where the other side speaks another one."""
    ready: bool = False
    """Whether the other side has said hello."""
    _socket: WebSocket | None = None
    _carried: dict[str, RemoteProducer] = field(factory=dict)
    lost: list[Stream] = field(factory=list)
    """What came when the link broke last."""
    _wanted: dict[str, _Wanted] = field(factory=dict)
    """Streams that were asked for, and are not described yet."""
    _last_request: int = 0
    _renewals: dict[str, DebtBucket] = field(factory=dict)
    """How often streams may be asked for that were dropped."""
    _postponed: set[str] = field(factory=set)
    """Streams that are asked for before long, if they are wanted then."""
    _outgoing: deque[bytes] = field(factory=deque)
    _wake: Wakeup = field(factory=Wakeup)
    _received: list[FromOrigin | ArrivedFrame] = field(factory=list)
    _takes: dict[str, _PendingTake] = field(factory=dict)
    _asks: dict[int, _PendingAsk] = field(factory=dict)
    _last_ask: int = 0
    _used_at: float = 0.0
    """When somebody last needed it, by Trio's clock."""
    _nursery: trio.Nursery | None = None

    @property
    def carried(self) -> list[RemoteProducer]:
        """What comes over the link."""
        return list(self._carried.values())

    @property
    def is_idle(self) -> bool:
        """Whether nobody needs it."""
        return not (self._carried or self._wanted or self._takes or self._asks)

    def carry(self, stream: Stream, *, was_sent: bool = False) -> None:
        """Ask for a stream, unless it comes or was asked for; `was_sent`: its origin has sent us
        here."""
        stream_id = stream.stream_id
        carried, wanted = self._carried.get(stream_id), self._wanted.get(stream_id)
        known = wanted if carried is None else carried
        if known is not None and known.stream is stream:
            return
        # One that was forgotten here meanwhile, and had the same id, gets nothing more.
        self._carried.pop(stream_id, None)
        self._last_request += 1
        self._wanted[stream_id] = wanted = _Wanted(stream, self._last_request, was_sent)
        if self.ready and not self._has_to_wait(stream_id):
            self._ask_for(wanted)

    def _has_to_wait(self, stream_id: str) -> bool:
        """Whether a stream was dropped and asked for too often; then it is asked for later."""
        if stream_id in self._postponed:
            return True
        renewals = self._renewals.get(stream_id)
        if renewals is None or renewals.take(1, trio.current_time()) or self._nursery is None:
            return False
        self._postponed.add(stream_id)
        self._nursery.start_soon(self._ask_later, stream_id)
        return True

    async def _ask_later(self, stream_id: str) -> None:
        await trio.sleep(1 / RENEWED_CARRY_RATE)
        self._postponed.discard(stream_id)
        wanted = self._wanted.get(stream_id)
        if wanted is not None and self.ready:
            self._ask_for(wanted)

    def _note_dropped(self, stream_id: str) -> None:
        if stream_id not in self._renewals:
            self._renewals[stream_id] = DebtBucket(RENEWED_CARRY_RATE, MAX_RENEWED_CARRIES)
            if len(self._renewals) > MAX_DROPPED_STREAMS:
                del self._renewals[next(iter(self._renewals))]

    def drop(self, producer: RemoteProducer) -> None:
        """Get no more of a stream."""
        stream_id = producer.stream.stream_id
        if self._carried.get(stream_id) is producer:
            del self._carried[stream_id]
            self._streams.detach(producer.stream, producer)
            self._note_dropped(stream_id)
            self.post(DropStream(stream_id=stream_id))

    async def take(self, stream_id: str, term: int, account: FrameAccount) -> Epoch | None:
        """Take a stream over, whose frames this account counts; returns the epoch to go on with,
        None if the node does not know the stream, or does not answer in time."""
        pending = self._takes[stream_id] = _PendingTake(term, account)
        if self.ready:
            self.post(TakeStream(stream_id=stream_id, term=term))
        with trio.move_on_after(TAKE_TIMEOUT):
            await pending.done.wait()
        if self._takes.get(stream_id) is pending:
            del self._takes[stream_id]
        self._used_at = trio.current_time()
        return pending.epoch

    async def ask(self, what: Literal["figures"], max_bytes: int) -> bytes | None:
        """Ask for a report of at most so many bytes; None if it does not come in time."""
        self._last_ask += 1
        number, pending = self._last_ask, _PendingAsk(what, max_bytes)
        self._asks[number] = pending
        if self.ready:
            self.post(pending.question(number))
        try:
            with trio.move_on_after(QUESTION_TIMEOUT):
                await pending.done.wait()
        finally:
            del self._asks[number]
        self._used_at = trio.current_time()
        return pending.body

    def post(self, message: FromEdge) -> None:
        """Send a message, in its order. Never waits."""
        self._outgoing.append(encode(message))
        self._wake.set()
        if len(self._outgoing) > MAX_UNSENT_MESSAGES and self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def run(self, socket: WebSocket) -> None:
        """Carry streams until the link is lost; raises nothing for that."""
        self._socket, self.other_version = socket, None
        self._postponed.clear()
        self._outgoing.clear()
        self.post(Hello(version=LINK_PROTOCOL_VERSION))
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write)
                self._nursery.start_soon(self._ping)
                await self._read()
                self._nursery.cancel_scope.cancel()
        finally:
            self._nursery, self._socket, self.ready = None, None, False
            self._lose_all()
            with trio.move_on_after(1, shield=True):
                await socket.abort()

    def close(self) -> None:
        """End the link."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def forget_wanted(self) -> None:
        """Want no stream any more that was not described yet."""
        self._wanted.clear()

    def fail_requests(self) -> None:
        """Let those who wait for an answer know that there is none."""
        for take in self._takes.values():
            take.done.set()
        for ask in self._asks.values():
            ask.done.set()

    def _lose_all(self) -> None:
        carried, self._carried = self._carried, {}
        self.lost = [producer.stream for producer in carried.values()]
        for producer in carried.values():
            self._streams.lose(producer.stream, producer)
        self._wanted.clear()
        self.fail_requests()

    async def _write(self) -> None:
        assert self._socket is not None
        try:
            while True:
                await self._wake.wait()
                while self._outgoing:
                    await self._socket.send(self._outgoing.popleft())
        except Closed:
            pass  # the reader notices

    async def _ping(self) -> None:
        socket = self._socket
        assert socket is not None
        self._used_at = trio.current_time()
        while trio.current_time() - socket.heard_at < LINK_SILENCE:
            await trio.sleep(LINK_PING_INTERVAL)
            self.post(Ping())
            now = trio.current_time()
            if not self.is_idle:
                self._used_at = now
            elif now - self._used_at >= LINK_IDLE_TIMEOUT:
                break
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        assert self._socket is not None
        try:
            while True:
                await self._socket.read(self._receive)
                received, self._received = self._received, []
                for stream_id, together in groupby(received, stream_of):
                    if stream_id is None:
                        for message in together:
                            self._handle(cast("FromOrigin", message))
                    else:
                        await self._deliver(stream_id, cast("list[ArrivedFrame]", list(together)))
        except (Closed, NoLinkMessage) as problem:
            if not isinstance(problem, Closed):
                log.warning("another node sent what is no message", other=self.node_id)

    def _receive(self, payload: memoryview) -> None:
        """Keep a message, which is valid only until this returns."""
        self._received.append(read_from_origin(payload))

    async def _deliver(self, stream_id: str, arrived: Sequence[ArrivedFrame]) -> None:
        producer = self._carried.get(stream_id)
        if producer is not None:
            account = producer.stream.account
            if account is not None and self._nursery is not None:
                layers = producer.stream.layers
                frames = [each.frame(account, layers) for each in arrived]
                await producer.deliver(frames, self._nursery.start_soon)
        # else it was dropped meanwhile

    def _handle(self, message: FromOrigin) -> None:
        match message:
            case Hello():
                self._begin(message)
            case StreamState():
                self._follow(message)
            case Moved():
                self._move(message)
            case Taken():
                self._taken(message)
            case Lost():
                self._give_up_lossless(message.stream_id)
            case LinkAnswer():
                pending = self._asks.get(message.id)
                if pending is not None:
                    pending.body = message.body
                    pending.done.set()
            case Leaving() | Pong() | CarriedFrame():
                pass

    def _begin(self, hello: Hello) -> None:
        if hello.version != LINK_PROTOCOL_VERSION:
            self.other_version = hello.version
            self.close()
            return
        self.ready = True
        self.on_ready()
        for wanted in list(self._wanted.values()):
            self._ask_for(wanted)
        for stream_id, pending in self._takes.items():
            self.post(TakeStream(stream_id=stream_id, term=pending.term))
        for number, pending_ask in self._asks.items():
            self.post(pending_ask.question(number))

    def _ask_for(self, wanted: _Wanted) -> None:
        stream = wanted.stream
        viewers = stream.viewers
        if viewers and stream.live and stream.is_remote:
            layers = stream.needed_layers()
            demand = demand_of(stream, wanted.request, viewers, layers, was_sent=wanted.was_sent)
            self.post(demand)
        else:
            del self._wanted[stream.stream_id]

    def _follow(self, state: StreamState) -> None:
        stream_id = state.stream_id
        producer, wanted = self._carried.get(stream_id), self._wanted.get(stream_id)
        if wanted is not None and wanted.request == state.request:
            del self._wanted[stream_id]
            stream = wanted.stream
        elif producer is not None and producer.request == state.request:
            stream = producer.stream
        else:
            return  # it answers a request that is of no interest any more
        if producer is None or producer.epoch != state.epoch:
            frames = self._metrics.frames
            producer = RemoteProducer(stream, self, state.request, state.epoch, frames)
            if stream.epoch == state.epoch and 0 < stream.seq < state.seq:
                producer.begin_at(stream.seq)  # what came behind it did not come here, and is lost
                stream.give_up_lossless()
            else:
                producer.begin_at(state.seq)
            self._carried[stream_id] = producer
        producer.path = state.path
        remote = RemoteState(
            *(state.path[0], state.term, state.epoch, state.owner_id),
            *(state.status, state.metadata, state.layers),
        )
        waits_for_itself = self.own_id in state.path
        if waits_for_itself or not self._streams.attach(stream, producer, remote):
            self.drop(producer)
            self.on_moved(self.node_id, Moved(stream_id=stream_id, request=state.request))

    def _move(self, moved: Moved) -> None:
        stream_id = moved.stream_id
        producer, wanted = self._carried.get(stream_id), self._wanted.get(stream_id)
        if producer is not None and producer.request == moved.request:
            del self._carried[stream_id]
            self._streams.lose(producer.stream, producer)
        elif wanted is not None and wanted.request == moved.request:
            del self._wanted[stream_id]
        else:
            return  # it answers a request that is of no interest any more
        self.on_moved(self.node_id, moved)

    def _taken(self, taken: Taken) -> None:
        pending = self._takes.get(taken.stream_id)
        if pending is None or pending.term != taken.term:
            return
        if taken.epoch:
            last = read_from_origin(memoryview(taken.keyframe)) if taken.keyframe else None
            keyframe = last.frame(pending.account, None) if isinstance(last, ArrivedFrame) else None
            pending.epoch = Epoch(taken.epoch, taken.term, taken.seq, taken.status, keyframe)
        pending.done.set()

    def _give_up_lossless(self, stream_id: str) -> None:
        producer = self._carried.get(stream_id)
        if producer is not None:
            producer.renew_demand()
            producer.stream.give_up_lossless()


@frozen
class _Wanted:
    stream: Stream
    request: int
    was_sent: bool


@define(eq=False)
class _PendingTake:
    term: int
    account: FrameAccount
    done: trio.Event = field(factory=trio.Event)
    epoch: Epoch | None = None


@define(eq=False)
class _PendingAsk:
    what: str
    max_bytes: int
    done: trio.Event = field(factory=trio.Event)
    body: bytes | None = None

    def question(self, number: int) -> LinkQuestion:
        return LinkQuestion(id=number, what=self.what, max_bytes=self.max_bytes)
