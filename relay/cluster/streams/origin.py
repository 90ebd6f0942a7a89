"""An origin: gives streams of this node to one other node, over one link."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import cast

import structlog
import trio
from attrs import define, field, frozen

from relay.cluster.streams.edge import LINK_SILENCE
from relay.cluster.streams.messages import (
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
    decode_from_edge,
    encode,
)
from relay.cluster.streams.remote_producer import CLUSTER, RemoteProducer
from relay.hub.cluster_streams import ClusterStreams
from relay.hub.edge_consumer import EdgeConsumer, LinkBytes
from relay.hub.flow_control import FlowControlOptions
from relay.hub.hub import Hub
from relay.hub.ledger import Totals
from relay.hub.stream import EdgeDemand, Stream
from relay.metrics import HopMetrics
from relay.model.access.identity import Identity
from relay.model.cluster import Node
from relay.protocol.codec import MSGPACK_CODEC, Codec
from relay.protocol.endings import Ending
from relay.protocol.messages import AlertEvent, ServerMessage, Status
from relay.transport import wire
from relay.transport.budget import Budget
from relay.transport.framing.frame_parser import Message
from relay.transport.mailbox import QUARTER_FULL, Mailbox
from relay.transport.stream import FrameStream, ignore

MAX_LINK_REQUEST_BYTES = 64 * 1024
"""Of a message from an edge."""
MAX_DIRECT_EDGES = 32
"""Nodes that get a stream from this one; those that come later get it from one of them, so that no
node sends a stream more often."""
MAX_TAKEN_BYTES = 1 << 20
"""Of the last keyframe of a stream that another node takes over; it goes ahead of frames."""
LOSSLESS_LINK_BYTES = 4 << 20
"""Bytes of one stream that wait for an edge with viewers who must miss no frame."""
LINK_GONE = (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError)

log = structlog.get_logger()


@define(eq=False)
class EdgeLink:
    """Another node that has viewers of streams here. An `EdgePeer`."""

    node: Node
    own_id: str
    """Of this node."""
    _stream: FrameStream
    _hub: Hub
    _streams: ClusterStreams
    _metrics: HopMetrics
    totals: Totals
    """What became of the frames for all edges."""
    report: Callable[[int], Awaitable[bytes]]
    """Makes a report of this node, as JSON of at most so many bytes."""
    on_other_version: Callable[[str, int], object] = lambda _node_id, _version: None
    """Called with the id of a node that speaks another version of the link."""
    number: int = 0
    takes_parts: bool = False
    _mailbox: Mailbox = field(init=False)
    _bytes: LinkBytes = field(factory=LinkBytes)
    _subscriptions: dict[str, _Subscription] = field(factory=dict)
    _nursery: trio.Nursery | None = None

    def __attrs_post_init__(self) -> None:
        self._mailbox = Mailbox(self._stream.outlet, Budget(1 << 30), self.close)

    @property
    def codec(self) -> Codec:
        return MSGPACK_CODEC

    @property
    def identity(self) -> Identity:
        return CLUSTER

    @property
    def node_id(self) -> str:
        return self.node.node_id

    @property
    def unsent_frame(self) -> object | None:
        return None

    @property
    def carried(self) -> list[tuple[Stream, EdgeConsumer]]:
        """What the edge gets."""
        return [(each.stream, each.consumer) for each in self._subscriptions.values()]

    async def run(self) -> None:
        """Serve the edge until the link is lost; raises nothing for that."""
        stream = self._stream
        stream.begin_frames(
            max_message=MAX_LINK_REQUEST_BYTES,
            budget=Budget(1 << 30),
            party=f"node:{self.node.node_id}",
            on_messages=self._receive,
            on_overhead=ignore,
            on_fault=self._fault,
        )
        stream.allow_messages_of(MAX_LINK_REQUEST_BYTES, f"node:{self.node.node_id}")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                stream.outlet.open(partial(nursery.start_soon, stream.outlet.run))
                nursery.start_soon(self._watch_silence)
                self.post(Hello(version=LINK_PROTOCOL_VERSION))
                try:
                    with suppress(*LINK_GONE):
                        await stream.read_frames()
                finally:
                    self._leave_hub()
                nursery.cancel_scope.cancel()
        finally:
            stream.close()
            stream.forget_listeners()

    def _leave_hub(self) -> None:
        """Let nobody write to the edge any more: the nursery, which that would start a task in, is
        about to be closed."""
        self._nursery = None
        for subscription in self._subscriptions.values():
            self._hub.unsubscribe_edge(subscription.stream, subscription.consumer)
        self._subscriptions.clear()
        self._mailbox.close()

    def close(self) -> None:
        """End the link."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def leave(self) -> None:
        """Say that this node is about to end."""
        self.post(Leaving())

    def post(self, message: FromOrigin) -> None:
        """Send a message ahead of frames. Never waits."""
        if not self._mailbox.post(wire.message(wire.BINARY, encode(message))):
            self.close()

    # -- as the hub sees it

    def tell_stream(self, stream: Stream) -> None:
        subscription = self._subscriptions.get(stream.stream_id)
        if subscription is not None:
            state = partial(self._describe, stream, subscription.request)
            if not self._mailbox.post_update(("stream", stream.stream_id), state):
                self.close()

    def tell_moved(self, stream_id: str, term: int, node_id: str | None) -> None:
        subscription = self._subscriptions.pop(stream_id, None)
        if subscription is not None:
            self._mailbox.drop_update(("stream", stream_id))
            request = subscription.request
            self.post(Moved(stream_id=stream_id, request=request, term=term, node_id=node_id))

    def tell_lost(self, stream_id: str) -> None:
        self.post(Lost(stream_id=stream_id))

    def tell(self, message: ServerMessage) -> None:
        """Notices are for producers."""

    def tell_status(self, status: Status) -> None:
        """`tell_stream` says more."""

    def tell_alert(self, alert: AlertEvent, owner_id: str) -> None:
        """Alerts come to each node from the database."""

    def too_slow(self) -> None:
        self.close()

    def cut_off(self) -> None:
        """A link is not ended for the frames of one owner."""

    # -- what the edge asks for

    def _fault(self, ending: Ending) -> None:
        log.warning("another node broke the protocol", other=self.node.node_id, why=ending.label)
        self.close()

    async def _watch_silence(self) -> None:
        until = self._stream.last_received + LINK_SILENCE
        while trio.current_time() < until:
            await trio.sleep_until(until)
            until = self._stream.last_received + LINK_SILENCE
        self.close()

    async def _receive(self, messages: list[Message]) -> None:
        for message in messages:
            try:
                request = decode_from_edge(message.payload)
            except NoLinkMessage:
                self._fault(Ending.PROTOCOL_ERROR)
                return
            self._handle(request)

    def _handle(self, request: FromEdge) -> None:
        match request:
            case Hello():
                if request.version != LINK_PROTOCOL_VERSION:
                    self.on_other_version(self.node.node_id, request.version)
                    self.close()
            case Carry():
                self._carry(request)
            case DropStream():
                self._drop(request.stream_id)
            case WantKeyframe():
                self._want_keyframe(request.stream_id)
            case Unencodable():
                self._note_unencodable(request.stream_id)
            case TakeStream():
                self._give_up(request)
            case LinkQuestion():
                assert self._nursery is not None
                self._nursery.start_soon(self._answer, request)
            case Ping():
                self.post(Pong())

    def _carry(self, request: Carry) -> None:
        stream_id = request.stream_id
        demand = EdgeDemand(request.viewers, frozenset(request.layers))
        known = self._subscriptions.get(stream_id)
        if known is not None and known.request == request.request:
            known.consumer.use_policy(lossless=request.lossless)
            known.stream.set_demand(known.consumer, demand)
            return
        elsewhere = self._elsewhere(request, known)
        if elsewhere is not None:
            self._drop(stream_id)
            self.post(elsewhere)
            return
        stream = self._hub.open(stream_id)
        consumer = self._consumer(stream_id)
        consumer.use_policy(lossless=request.lossless)
        self._subscriptions[stream_id] = _Subscription(stream, consumer, request.request)
        self.tell_stream(stream)
        stream.watch_edge(consumer, demand)
        if known is not None:  # after that, so that the producer sees no gap between the two
            self._hub.unsubscribe_edge(known.stream, known.consumer)

    def _elsewhere(self, request: Carry, known: _Subscription | None) -> Moved | None:
        """Where else the edge gets the stream; None if here."""
        stream_id, number = request.stream_id, request.request
        stream = self._hub.find(stream_id)
        if stream is None or not stream.live:
            return Moved(stream_id=stream_id, request=number)
        term = stream.term
        if stream.is_remote and not (request.was_sent and path_to(stream)):
            return Moved(stream_id=stream_id, request=number, term=term, node_id=stream.origin)
        if known is None and len(stream.edges) >= MAX_DIRECT_EDGES:
            others = [cast("EdgeLink", edge.peer).node for edge in stream.edges]
            near = [each for each in others if each.machine == self.node.machine]
            to = random.choice(near or others).node_id  # noqa: S311, no secret
            return Moved(stream_id=stream_id, request=number, term=term, node_id=to, carries=True)
        return None

    def _consumer(self, stream_id: str) -> EdgeConsumer:
        return EdgeConsumer(
            stream_id=stream_id,
            wants_frames=True,
            wants_alerts=False,
            peer=self,
            outlet=self._stream.outlet,
            metrics=self._metrics.sent,
            flow_control=FlowControlOptions(adapts=False),
            lossless_bytes=LOSSLESS_LINK_BYTES,
            totals=self.totals,
            link_bytes=self._bytes,
        )

    def _drop(self, stream_id: str) -> None:
        subscription = self._subscriptions.pop(stream_id, None)
        if subscription is not None:
            self._mailbox.drop_update(("stream", stream_id))
            self._hub.unsubscribe_edge(subscription.stream, subscription.consumer)

    def _want_keyframe(self, stream_id: str) -> None:
        subscription = self._subscriptions.get(stream_id)
        if subscription is not None:
            subscription.stream.want_keyframe(f"node:{self.node.node_id}")

    def _note_unencodable(self, stream_id: str) -> None:
        subscription = self._subscriptions.get(stream_id)
        if subscription is not None:
            subscription.stream.note_unencodable()

    def _give_up(self, request: TakeStream) -> None:
        """Leave a stream to the node at the other end."""
        stream_id, term = request.stream_id, request.term
        known = self._streams.give_up(stream_id, term, self.node.node_id)
        if known is None:
            self.post(Taken(stream_id=stream_id, term=term))
            return
        frame = known.keyframe
        keyframe = b"" if frame is None or frame.size > MAX_TAKEN_BYTES else frame.message_as_sent()
        self.post(
            Taken(
                stream_id=stream_id,
                term=term,
                epoch=known.epoch,
                seq=known.seq,
                status=known.status,
                keyframe=keyframe,
            )
        )

    async def _answer(self, request: LinkQuestion) -> None:
        body = b"" if request.what != "figures" else await self.report(request.max_bytes)
        await self._mailbox.wait_for_room(QUARTER_FULL)  # a report ends no link
        self.post(LinkAnswer(id=request.id, body=body))

    def _describe(self, stream: Stream, request: int) -> bytes:
        state = StreamState(
            stream_id=stream.stream_id,
            request=request,
            term=stream.term,
            epoch=stream.epoch,
            status=stream.status,
            owner_id=stream.owner_id or "",
            seq=stream.seq,
            metadata=stream.metadata,
            layers=None if stream.registered_layers is None else list(stream.registered_layers),
            path=[*path_to(stream), self.own_id],
        )
        return wire.message(wire.BINARY, encode(state))


def path_to(stream: Stream) -> Sequence[str]:
    """The nodes that a stream comes through to this one, the origin first; none if it is produced
    here, or does not come."""
    producer = stream.producer
    return producer.path if isinstance(producer, RemoteProducer) else ()


@frozen
class _Subscription:
    stream: Stream
    consumer: EdgeConsumer
    request: int
    """As in `Carry`."""
