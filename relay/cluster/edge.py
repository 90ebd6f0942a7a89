"""An edge: carries the streams of one other node to the viewers here, over one link."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Literal, cast

import structlog
import trio
from attrs import define, field, frozen

from relay.client.errors import Closed
from relay.client.websocket import WebSocket
from relay.cluster.messages import (
    LINK_PROTOCOL_VERSION,
    Carry,
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
    Unencodable,
    WantKeyframe,
    decode_from_origin,
    decode_text_frame,
    encode,
)
from relay.concurrency.wakeup import Wakeup
from relay.guard.throttle import DebtBucket
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.frames.frame import Frame
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.layers.layer_set import LayerSet, PictureLayer
from relay.hub.remote import Epoch, RemoteState
from relay.hub.stream import Stream
from relay.metrics import HopMetrics
from relay.model.identity import ANY_STREAM, Identity, Service
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec
from relay.protocol.messages import AlertEvent, CarriedFrame, Notice, ServerMessage, Status
from relay.transport.wire import MAX_HEADER_BYTES

LINK_PING_INTERVAL, LINK_SILENCE = 2.0, 6.0
"""Seconds between two signs of life of the edge, and after which a silent link is dead."""
LINK_IDLE_TIMEOUT = 10.0
"""Seconds for which a link stays open that nobody needs."""
MAX_INLINE_VIEWERS = 128
"""Viewers of a stream whose frames are given out before the link is read further."""
MAX_QUEUED_FRAMES = 32
"""Frames of a stream that wait for its viewers to be given the one before."""
MAX_QUEUED_BYTES = 16 << 20
"""Their bytes; one frame fits always."""
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
OPEN_BRACE = 0x7B
"""How a frame in JSON begins, and no MessagePack."""

CLUSTER = Service(name="cluster", consume=frozenset({ANY_STREAM}), alerts=False, operate=False)
"""The identity of other nodes: who may see what is decided where the viewers are."""

log = structlog.get_logger()


@define(eq=False)
class RemoteProducer:
    """Stands for the producer of a stream that another node has. A `Producer`."""

    stream: Stream
    _link: OriginLink
    request: int
    """The number of the request that this answers."""
    epoch: int
    """Of which it gives frames."""
    _totals: Counter[str]
    """What all have `received` and `lost`."""
    wants_alerts: bool = False
    received: int = 0
    """Frames that came over the link, and were given to the viewers."""
    lost: int = 0
    """Frames that the origin accepted meanwhile, and that did not come, or for which the viewers
    were too many."""
    codec: Codec = MSGPACK_CODEC
    number: int = 0
    """None of this node's connections was accepted earlier."""
    _last_seq: int = 0
    _queue: deque[Frame] | None = None
    """Frames that wait for the one before; None while none is given out."""
    _queued_bytes: int = 0
    _awaiting_keyframe: set[int | None] = field(factory=set)
    """The layers of which frames were left out; None in a stream without layers."""
    path: Sequence[str] = ()
    """The nodes that the stream comes through, the origin first."""
    _demand: Carry | None = None

    @property
    def identity(self) -> Identity:
        return CLUSTER

    def tell(self, message: ServerMessage) -> None:
        """Pass on what concerns the producer itself."""
        if isinstance(message, Notice):
            self._link.post(WantKeyframe(stream_id=self.stream.stream_id))
        else:
            self._link.post(Unencodable(stream_id=self.stream.stream_id))

    def tell_status(self, status: Status) -> None:
        """Pass on how many viewers there are, and which layers they need."""
        viewers = status.consumers or 0
        if not viewers:
            self._link.drop(self)
            return
        demand = demand_of(self.stream, self.request, viewers, status.layers or [])
        if demand != self._demand:
            self._demand = demand
            self._link.post(demand)

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        """Alerts come to each node from the database."""

    def superseded(self) -> None:
        """Another node has the stream, or this one."""
        self._link.drop(self)

    def lost_stream(self) -> None:
        """The stream has another owner; its node knows, too."""
        self._link.drop(self)

    def begin_at(self, seq: int) -> None:
        """Expect the pictures behind this one."""
        self._last_seq = seq

    def renew_demand(self) -> None:
        """Say at the next occasion what the viewers need, be it the same."""
        self._demand = None

    async def deliver(
        self, frames: list[Frame], start_soon: Callable[[Callable[[], Awaitable[None]]], object]
    ) -> None:
        """Give frames that came together to the viewers, in their turn, and hold up other streams
        for no longer than a small audience takes."""
        usable = [each for each in frames if self._is_usable(each)]
        if self._queue is None:
            small = not any(frame.is_large for frame in usable)
            if small and len(self.stream.fanout.audience) <= MAX_INLINE_VIEWERS:
                self._note_received(len(usable))
                await self.stream.carry(usable, self)
                return
            self._queue = deque()
            start_soon(self._work_off)
        for frame in usable:
            self._let_wait(frame, self._queue)

    def _let_wait(self, frame: Frame, queue: deque[Frame]) -> None:
        frame.keep()
        if queue and not self._has_room_for(queue, frame):
            self._drop_queue(queue)
        if not self._has_reference(frame):
            self._note_lost(1)
            return
        queue.append(frame)
        self._queued_bytes += frame.size

    def _has_room_for(self, queue: deque[Frame], frame: Frame) -> bool:
        more = self._queued_bytes + frame.size
        return len(queue) < MAX_QUEUED_FRAMES and more <= MAX_QUEUED_BYTES

    def _is_usable(self, frame: Frame) -> bool:
        """Whether a frame does not build on one that did not come; note it."""
        self._note_gap(frame)
        if not self._has_reference(frame):
            self._note_lost(1)
            return False
        return True

    def _has_reference(self, frame: Frame) -> bool:
        if frame.is_delta:
            return _layer_of(frame) not in self._awaiting_keyframe
        self._awaiting_keyframe.discard(_layer_of(frame))
        return True

    async def _work_off(self) -> None:
        queue = self._queue
        assert queue is not None
        try:
            while queue:
                frame = queue.popleft()
                self._queued_bytes -= frame.size
                self._note_received(1)
                await self.stream.carry([frame], self)
                del frame  # nobody counts what is only held here
        finally:
            self._queue = None
            self._drop_queue(queue)

    def _drop_queue(self, queue: deque[Frame]) -> None:
        if queue:
            self._note_lost(len(queue))
            self._awaiting_keyframe.update(map(_layer_of, queue))
            queue.clear()
            self._queued_bytes = 0

    def _note_gap(self, frame: Frame) -> None:
        self.codec = frame.codec
        if frame.seq > self._last_seq:
            self._note_lost(frame.seq - self._last_seq - 1)
            self._last_seq = frame.seq

    def _note_received(self, count: int) -> None:
        self.received += count
        self._totals["received"] += count

    def _note_lost(self, count: int) -> None:
        if count:
            self.lost += count
            self._totals["lost"] += count
            if self.stream.producer is self:
                self.stream.give_up_lossless()


def _layer_of(frame: Frame) -> int | None:
    return None if frame.layer is None else frame.layer.index


@frozen
class _Arrived:
    """A frame as it came over a link."""

    event: CarriedFrame
    codec: Codec
    buffer: bytearray
    """The message, behind `MAX_HEADER_BYTES` of room."""

    def frame(self, account: FrameAccount, layers: LayerSet | None) -> Frame:
        """The frame, whose bytes this account counts."""
        layer, layer_id = None, self.event.layer
        if layer_id is not None and layers is not None:
            index = layers.index_of(layer_id)
            layer = None if index is None else PictureLayer(index, layer_id)
        return Frame.carried(self.event, self.codec, self.buffer, account, layer)


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
    _received: list[FromOrigin | _Arrived] = field(factory=list)
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
                for stream_id, together in groupby(received, _stream_of):
                    if stream_id is None:
                        for message in together:
                            self._handle(cast("FromOrigin", message))
                    else:
                        await self._deliver(stream_id, cast("list[_Arrived]", list(together)))
        except (Closed, NoLinkMessage) as problem:
            if not isinstance(problem, Closed):
                log.warning("another node sent what is no message", other=self.node_id)

    def _receive(self, payload: memoryview) -> None:
        """Keep a message, which is valid only until this returns."""
        self._received.append(_read(payload))

    async def _deliver(self, stream_id: str, arrived: Sequence[_Arrived]) -> None:
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
            last = _read(memoryview(taken.keyframe)) if taken.keyframe else None
            keyframe = last.frame(pending.account, None) if isinstance(last, _Arrived) else None
            pending.epoch = Epoch(taken.epoch, taken.term, taken.seq, taken.status, keyframe)
        pending.done.set()

    def _give_up_lossless(self, stream_id: str) -> None:
        producer = self._carried.get(stream_id)
        if producer is not None:
            producer.renew_demand()
            producer.stream.give_up_lossless()


def _read(payload: memoryview) -> FromOrigin | _Arrived:
    buffer = bytearray(MAX_HEADER_BYTES) + payload
    view = memoryview(buffer)[MAX_HEADER_BYTES:]
    in_json = len(view) > 0 and view[0] == OPEN_BRACE
    message = decode_text_frame(view) if in_json else decode_from_origin(view)
    if isinstance(message, CarriedFrame):
        return _Arrived(message, JSON_CODEC if in_json else MSGPACK_CODEC, buffer)
    return message


def _stream_of(message: FromOrigin | _Arrived) -> str | None:
    """The stream whose frame it is; None for what is no frame."""
    return message.event.stream_id if isinstance(message, _Arrived) else None


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


def demand_of(
    stream: Stream, request: int, viewers: int, layers: list[str], *, was_sent: bool = False
) -> Carry:
    """What the viewers of a stream need, as its origin is told."""
    return Carry(
        stream_id=stream.stream_id,
        request=request,
        viewers=viewers,
        layers=layers,
        lossless=any(each.lossless for each in stream.fanout.audience),
        was_sent=was_sent,
    )
