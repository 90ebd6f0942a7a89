"""All streams of this relay.

Everything here happens at once, without waiting: there is no order of events in which a stream is
half changed. Only a publish to a large audience takes turns with others, and the next one of its
stream waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

import trio
from attrs import define, field

from relay.hub.consumer import Consumer
from relay.hub.frames.frame_budget import FrameBudget
from relay.hub.frames.picture_ring import MakeRing
from relay.hub.layers.renditions import PictureRenderer, Renditions
from relay.hub.ledger import Totals
from relay.hub.live_streams import LiveStreams
from relay.hub.observers import Observers, is_wide
from relay.hub.peer import HubPeer, Producer
from relay.hub.remote import Epoch, LocalOnly, RemoteState, RemoteStreams
from relay.hub.stream import Stream
from relay.hub.stream_report import report_of
from relay.metrics import Metrics
from relay.model.access import permissions
from relay.model.access.identity import Identity
from relay.model.targets.stream_event import StreamPresence
from relay.protocol.messages import (
    AlertEvent,
    Layer,
    Metadata,
    Status,
    StreamStatus,
    now_ms,
)
from relay.protocol.reports import FiguresReport, FrameCounts, StreamCounts

COUNT_INTERVAL = 1.0
"""Seconds in which viewers come and go before a producer is told how many there are now. That there
are any, or none, it is told at once."""


@define(eq=False, repr=False)
class Hub:
    """The streams that are live or watched, by id."""

    _metrics: Metrics
    _offline_grace: float
    """Seconds that a stream outlives its producer, so that a short loss goes unnoticed."""
    frame_budget: FrameBudget = field(factory=FrameBudget)
    _streams: dict[str, Stream] = field(factory=dict)
    _observers: Observers = field(factory=Observers)
    _live: LiveStreams = field(factory=LiveStreams)
    totals: Totals = field(factory=Totals)
    _subscriptions: Counter[str] = field(factory=Counter)
    """By user or service."""
    renderer: PictureRenderer | None = None
    """Makes smaller pictures for viewers on slow links; None if nothing does."""
    remote: RemoteStreams = field(factory=LocalOnly)
    """The other nodes."""
    make_ring: MakeRing = field(default=lambda _stream_id: None)
    """Makes the ring of a stream's pictures where one is wanted."""
    on_alert: Callable[[AlertEvent, str], object] = field(default=lambda _alert, _owner_id: None)
    """Called with each alert that is delivered, and the owner of its stream. Never waits."""
    on_register: Callable[[str], object] = field(default=lambda _stream_id: None)
    """Called with the id of each stream that is registered."""
    on_presence: Callable[[str, StreamPresence | None], object] | None = None
    """Called when a stream may have gone online or offline here, or be watched or not any more;
    None: nobody wants to know."""
    _last_epoch: int = 0
    """The last epoch of any stream: epochs grow even if the clock steps back."""
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after streams that lost their producer, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # while it ends, it takes no task any more

    def register(
        self,
        stream_id: str,
        owner_id: str,
        producer: Producer,
        metadata: Metadata | None,
        *,
        layers: Sequence[Layer] | None = None,
        epoch: Epoch | None = None,
    ) -> Stream | None:
        """Make a connection the producer of a stream, with these layers of each picture if any.

        In a cluster `epoch` says in which epoch it begins, or goes on.

        None when a connection that was accepted later produces it already. One that was accepted
        earlier is superseded. The caller has made sure that the owner owns the stream; a live
        stream of another owner ends first.
        """
        known = self._streams.get(stream_id)
        if known is not None and known.live:
            self.change_owner(stream_id, owner_id)
        stream = self._stream(stream_id)
        before = stream.producer
        if before is not None and before.number > producer.number:
            return None
        if stream.grace is not None:
            stream.grace.cancel()
            stream.grace = None
        if epoch is None:
            epoch = self._next_epoch()
        elif stream.live and stream.epoch != epoch.number:
            self.end(stream)
            stream = self._stream(stream_id)
        if stream.live:
            stream.come_here(epoch)
            stream.continue_with(producer, metadata, layers=layers)
        else:
            account = self.frame_budget.account(owner_id)
            stream.start(epoch, owner_id, producer, metadata, account, layers=layers)
            self._live.add(stream_id, owner_id)
        if epoch.keyframe is not None:
            stream.fanout.begin_with(epoch.keyframe)
        if before is not None and before is not producer:
            before.superseded()
        self.on_register(stream_id)
        return stream

    def begin_again(self, stream: Stream, producer: Producer, epoch: Epoch) -> None:
        """Begin another epoch of a live stream, with the same producer."""
        metadata, layers = stream.metadata, stream.registered_layers
        owner_id, account = stream.owner_id, stream.account
        assert owner_id is not None
        assert account is not None
        stream.end()
        stream.start(epoch, owner_id, producer, metadata, account, layers=layers)
        stream.tell_producer()

    def _next_epoch(self) -> Epoch:
        self._last_epoch = max(self._last_epoch + 1, now_ms())
        return Epoch(self._last_epoch)

    def change_owner(self, stream_id: str, owner_id: str | None) -> None:
        """Apply another owner, or none: the life of the stream under the former one ends, and with
        it the connection that produces it."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.owner_id in {None, owner_id}:
            return
        producer, grace = stream.producer, stream.grace
        if stream.live:
            self.end(stream)
        if grace is not None:
            grace.cancel()
        stream.change_owner(owner_id)
        if producer is not None:
            producer.lost_stream()

    def find(self, stream_id: str) -> Stream | None:
        """A stream that is live or watched here."""
        return self._streams.get(stream_id)

    def start_remote(self, stream: Stream, state: RemoteState) -> None:
        """Begin an epoch of a watched stream, whose producer is connected to another node."""
        epoch = Epoch(state.epoch, state.term, status=state.status)
        stream.start(
            epoch,
            state.owner_id,
            None,
            state.metadata,
            self.frame_budget.account(state.owner_id),
            layers=state.layers,
            origin=state.node_id,
        )
        self._live.add(stream.stream_id, state.owner_id)

    def tell_observers(self, status: Status, owner_id: str) -> None:
        """Tell those who observe streams of one that nobody watches here."""
        self._observers.tell(status, owner_id, but=())

    @property
    def is_observed(self) -> bool:
        """Whether a connection here observes streams."""
        return bool(self._observers)

    def observes(self, peer: HubPeer) -> bool:
        """Whether a connection observes streams."""
        return peer in self._observers

    def open(self, stream_id: str) -> Stream:
        """A stream of another node, or for one: what is not live has to be used at once."""
        return self._stream(stream_id)

    def unsubscribe_edge(self, stream: Stream, edge: Consumer) -> None:
        """Give another node no more of a stream."""
        stream.unwatch(edge)
        self.forget_unused(stream)

    def live_ids(self) -> Iterator[str]:
        """The ids of all live streams."""
        return iter(self._live.ids)

    def owner_of(self, stream_id: str) -> str | None:
        """The owner of a stream as it was last registered; None while it is not live."""
        stream = self._streams.get(stream_id)
        return stream.owner_id if stream is not None and stream.live else None

    def producer(self, stream_id: str) -> Producer | None:
        """The connection that currently produces a stream."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.producer

    def release(self, stream: Stream, producer: Producer | None, *, at_once: bool = False) -> None:
        """End a connection's production; unless `at_once`, the stream waits for it to come back."""
        if stream.producer is not producer:
            return
        stream.producer = None
        if at_once or self._nursery is None:
            self.end(stream)
        else:
            stream.grace = trio.CancelScope()
            self._nursery.start_soon(self._await_producer, stream, stream.grace)

    def count_streams_of(self, owner_id: str, *, but: Collection[str]) -> int:
        """The number of live streams of a user, without those named in `but`."""
        return len(self._live.by_owner.get(owner_id, set()).difference(but))

    def count_subscriptions_of(self, identity: Identity) -> int:
        """The subscriptions of a user or service, on all connections."""
        return self._subscriptions[identity.sender]

    def subscribe(self, consumer: Consumer) -> Stream:
        """The stream that a consumer asks for, which may not exist yet; call its `watch` next."""
        self.totals.consumers += 1
        self._subscriptions[consumer.identity.sender] += 1
        return self._stream(consumer.stream_id)

    def unsubscribe(self, stream: Stream, consumer: Consumer) -> None:
        self.totals.consumers -= 1
        sender = consumer.identity.sender
        self._subscriptions[sender] -= 1
        if not self._subscriptions[sender]:
            del self._subscriptions[sender]
        stream.unwatch(consumer)
        self.forget_unused(stream)

    def deliver(self, alert: AlertEvent, owner_id: str) -> int:
        """Give an alert to every connection that consumes the alerts of its stream; returns how
        many these are."""
        self.on_alert(alert, owner_id)
        stream = self._streams.get(alert.stream_id)
        if stream is None:
            return 0
        # A connection that produces a stream and watches it too gets its alerts once.
        peers: set[HubPeer] = {
            consumer.peer
            for consumer in stream.watchers
            if consumer.wants_alerts
            and permissions.may_watch(consumer.identity, alert.stream_id, owner_id)
        }
        producer = stream.producer
        if (
            producer is not None
            and producer.wants_alerts
            and permissions.may_watch(producer.identity, alert.stream_id, owner_id)
        ):
            peers.add(producer)
        for peer in peers:
            self._metrics.alerts_delivered += 1
            peer.tell_alert(alert, owner_id)
        return len(peers)

    def observe(self, observer: HubPeer) -> None:
        """Tell an observer of each change to the streams that it may see, from now on."""
        self._observers.add(observer)

    def visible_to(self, identity: Identity, after: str = "") -> Iterator[Stream]:
        """The live streams that a user or service may see, by id, from the one behind `after`."""
        for stream_id in self._live.visible_to(identity, after):
            stream = self._streams[stream_id]
            if permissions.may_watch(identity, stream_id, stream.owner_id):
                yield stream

    def figures(self) -> FiguresReport:
        """Every stream with its consumers, for operators."""
        return FiguresReport([report_of(stream) for stream in self._streams.values()])

    def streams(self) -> list[Stream]:
        """Every stream that is live or watched, whether or not it was ever registered."""
        return list(self._streams.values())

    def unobserve(self, observer: HubPeer) -> None:
        self._observers.discard(observer)

    def reconsider(
        self, peer: HubPeer, before: Identity, consumers: Mapping[str, Consumer]
    ) -> None:
        """Apply a change of permissions to a peer; `before` is its previous identity."""
        observes = peer in self._observers
        if observes:
            self._observers.add(peer)
            self.remote.reconsider(peer, before)
        for stream_id in self._changed(peer.identity, before, consumers, observes=observes):
            stream = self._streams[stream_id]
            sees = permissions.may_watch(peer.identity, stream_id, stream.owner_id)
            if sees == permissions.may_watch(before, stream.stream_id, stream.owner_id):
                continue
            consumer = consumers.get(stream_id)
            if consumer is not None:
                change = stream.reveal if sees else stream.conceal
                change(consumer)
            elif observes and stream.live:
                peer.tell_status(stream.public_status(visible=sees))

    def ledger(self) -> FrameCounts:
        """The outcome of all frames offered to consumers."""
        total = self.totals.frames
        dropped = {why.value: count for why, count in total.dropped.items()}
        return FrameCounts(total.accepted, total.written, dropped, self.totals.waiting)

    def count(self) -> StreamCounts:
        """The live streams by status, and the subscriptions to all streams."""
        return StreamCounts(
            online=self.totals.streams[StreamStatus.ONLINE],
            streaming=self.totals.streams[StreamStatus.STREAMING],
            consumers=self.totals.consumers,
        )

    def _changed(
        self,
        now: Identity,
        before: Identity,
        consumers: Mapping[str, Consumer],
        *,
        observes: bool,
    ) -> list[str]:
        """The streams that a peer watches or is told of, and may perhaps see now or no more."""
        was, is_ = permissions.visible_streams(before), permissions.visible_streams(now)
        watched = consumers.keys()
        others = self._live.ids if observes else ()
        if is_wide(was) or is_wide(is_) or was.owner_id != is_.owner_id:
            return [*watched, *(each for each in others if each not in watched)]
        changed = sorted(was.stream_ids ^ is_.stream_ids)
        return [each for each in changed if each in watched or (observes and each in self._live)]

    async def _await_producer(self, stream: Stream, grace: trio.CancelScope) -> None:
        with grace:
            await trio.sleep(self._offline_grace)
            self.end(stream)

    def end(self, stream: Stream) -> None:
        """End the epoch of a live stream."""
        stream.grace = None
        stream.end()
        assert stream.owner_id is not None
        self._live.discard(stream.stream_id, stream.owner_id)
        stream.origin = None
        self.forget_unused(stream)

    def _stream(self, stream_id: str) -> Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._streams[stream_id] = Stream(
                stream_id=stream_id,
                metrics=self._metrics,
                observers=self._observers,
                totals=self.totals,
                on_recount=self._recount,
                on_presence=self._note_presence,
                renditions=None if self.renderer is None else Renditions(self.renderer),
                start_soon=self._start_soon,
                remote=self.remote,
                ring=self.make_ring(stream_id),
            )
        return stream

    def presences(self) -> Iterator[StreamPresence]:
        """The live streams that are produced here."""
        for stream_id in self._live.ids:
            presence = self._streams[stream_id].presence
            if presence is not None:
                yield presence

    def sends_jpeg(self, stream_id: str) -> bool | None:
        """Whether the pictures of a live stream are JPEG; None if it is not known here, or none of
        its pictures is."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.live or stream.fanout.keyframe is None:
            return None
        return stream.fanout.keyframe.looks_like_jpeg

    def _note_presence(self, stream: Stream) -> None:
        if self.on_presence is not None:
            self.on_presence(stream.stream_id, stream.presence)

    def _recount(self, stream: Stream) -> None:
        async def wait() -> None:
            await trio.sleep(COUNT_INTERVAL)
            stream.tell_count()

        if self._nursery is not None:
            stream.counting = True
            self._nursery.start_soon(wait)

    def _start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task)

    def forget_unused(self, stream: Stream) -> None:
        """Forget a stream that is not watched, unless it is produced here."""
        if stream.watchers or (stream.live and not stream.is_remote):
            return
        if self._streams.get(stream.stream_id) is not stream:
            return  # it is forgotten already
        if stream.live:
            self._let_go(stream)
        del self._streams[stream.stream_id]
        stream.enter(None)

    def _let_go(self, stream: Stream) -> None:
        """Get no more of a stream that goes on on another node."""
        producer, grace = stream.producer, stream.grace
        stream.producer = stream.grace = None
        assert stream.owner_id is not None
        self._live.discard(stream.stream_id, stream.owner_id)
        if grace is not None:
            grace.cancel()
        if producer is not None:
            producer.superseded()
