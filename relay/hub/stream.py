"""One stream: who produces it, who watches it, and its status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from weakref import ref

import msgspec
import trio
from attrs import define, field, frozen

from relay.guard.throttle import DebtBucket
from relay.hub.consumer import Consumer
from relay.hub.frame_intake import FrameIntake, LastPicture
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.frames.picture_ring import PictureListener, PictureRing
from relay.hub.keyframe_requests import KeyframeRequests
from relay.hub.layers.layer_set import LayerSet, StreamLayer
from relay.hub.observers import Observers
from relay.hub.peer import EdgePeer, Producer
from relay.hub.remote import Epoch, LocalOnly, RemoteStreams
from relay.model.access import permissions
from relay.model.targets.stream_event import StreamPresence
from relay.protocol.codec import JSON_CODEC, Codec
from relay.protocol.messages import Layer, Metadata, Notice, Status, StreamStatus

SWITCH_RATE, MAX_SWITCHES = 1.0, 4.0
"""How often a second, and in a row, a producer is told at once that somebody watches or nobody: a
viewer that comes and goes must not take its link."""


@frozen
class EdgeDemand:
    """What another node wants for its viewers."""

    viewers: int = 1
    layers: frozenset[str] = frozenset()
    """The ids of the layers that they need."""


@define(eq=False)
class Stream(FrameIntake):
    """A stream that is produced or watched."""

    _observers: Observers
    metadata: Metadata | None = None
    metadata_bytes: int = 0
    """Its size as JSON."""
    watchers: dict[Consumer, None] = field(factory=dict)
    """All subscriptions, whether or not they may see the stream."""
    grace: trio.CancelScope | None = None
    """Around the wait for the producer to come back."""
    on_recount: Callable[[Stream], object] = field(default=lambda _stream: None)
    """The audience is not as large as the producer was told: call `tell_count` before long."""
    counting: bool = False
    """Whether that call is scheduled."""
    on_presence: Callable[[Stream], object] = field(default=lambda _stream: None)
    """Called when it may have gone online or offline, or be watched or not any more."""
    remote: RemoteStreams = field(factory=LocalOnly)
    origin: str | None = None
    """The node that its producer is connected to; None: this one."""
    term: int = 0
    """Of the origin, in a cluster."""
    edges: dict[Consumer, EdgeDemand] = field(factory=dict)
    """The subscriptions of other nodes, with what they want for their viewers."""
    recorders: int = 0
    """Those within the relay that want frames for a while, as viewers do."""
    _registered_layers: Sequence[Layer] | None = None
    _told_count: int = 0
    _keyframe_requests: KeyframeRequests = field(init=False)
    _told_layers: Sequence[str] | None = None
    _switches: DebtBucket | None = None
    """Limits how often the producer is told at once that there are viewers, or none."""

    def __attrs_post_init__(self) -> None:
        super(Stream, self).__attrs_post_init__()  # noqa: UP008 (slots)
        self._keyframe_requests = KeyframeRequests(ref(self))

    @property
    def is_remote(self) -> bool:
        """Whether it is live on another node."""
        return self.origin is not None

    @property
    def viewers(self) -> int:
        """Those who get its frames, here and on other nodes."""
        count = len(self.fanout.audience) + self.recorders
        if self.edges:
            count += sum(
                demand.viewers - 1 for edge, demand in self.edges.items() if self._serves(edge)
            )
        return count

    @property
    def presence(self) -> StreamPresence | None:
        """What those elsewhere are told of it; None if it is not produced here, or never was."""
        if self.owner_id is None or self.origin is not None:
            return None
        return StreamPresence(
            self.stream_id,
            self.owner_id,
            self.epoch,
            self.term,
            online=self.live,
            watched=self.live and self.viewers > self.recorders,
        )

    @property
    def standby(self) -> float | None:
        """The pictures a second that are wanted though nobody watches; None also of a producer that
        says that it sends no pictures."""
        if self.ring is None or self.viewers:
            return None
        codec = None if self.metadata is None else self.metadata.get("codec")
        return self.ring.standby if codec in (None, "jpeg") else None

    def watch(self, consumer: Consumer) -> None:
        """Add a consumer; if it may see the stream, the latest frame is offered at once."""
        self.watchers[consumer] = None
        consumer.keyframe_requests = self._keyframe_requests
        if self._serves(consumer):
            consumer.use_layers(self._current_layers, self.seq - 1)
            self._set_audience((*self.fanout.audience, consumer))
            self.fanout.welcome(consumer)
            if self.fanout.behind_latest:
                self._keyframe_requests.make(consumer.identity.sender)
            self._keep_within_budget()
            if self.is_remote and consumer.lossless and self._may_tell_at_once():
                self.tell_producer()  # until then the link may leave out frames

    def reveal(self, consumer: Consumer) -> None:
        """Let a consumer that may now see the stream begin as a new one does."""
        if self.live:
            consumer.peer.tell_status(self.status_for(consumer))
        consumer.reopen()
        self.watch(consumer)

    def conceal(self, consumer: Consumer) -> None:
        """Hide the stream from a consumer that may no longer see it, as if it were offline."""
        consumer.close()
        self._set_audience(self._without(consumer))
        if self.live:
            consumer.peer.tell_status(self.status_for(consumer))

    def unwatch(self, consumer: Consumer) -> None:
        consumer.close()
        self.watchers.pop(consumer, None)
        self.edges.pop(consumer, None)
        self._set_audience(self._without(consumer))

    def listen(self, listener: PictureListener) -> None:
        """Give each picture that comes to this listener as well."""
        if self.ring is None:
            self.ring = PictureRing()
        self.ring.listeners[listener] = None

    def unlisten(self, listener: PictureListener) -> None:
        ring = self.ring
        if ring is not None:
            ring.listeners.pop(listener, None)
            if not ring.listeners and not ring.seconds:
                self.ring = None

    def demand(self, change: int) -> None:
        """Count recorders, which the producer sees as viewers."""
        was_watched = self.viewers > 0
        self.recorders += change
        if (self.viewers > 0) != was_watched and self._may_tell_at_once():
            self.tell_producer()
        elif not self.counting:
            self.on_recount(self)

    def may_see(self, consumer: Consumer) -> bool:
        return permissions.may_watch(consumer.identity, self.stream_id, self.owner_id)

    def start(
        self,
        epoch: Epoch,
        owner_id: str,
        producer: Producer | None,
        metadata: Metadata | None,
        account: FrameAccount,
        *,
        layers: Sequence[Layer] | None = None,
        origin: str | None = None,
    ) -> None:
        """Begin a new epoch of the stream, or one that began on another node, which goes on there
        if it is the origin."""
        self.enter(account)
        self._describe(metadata)
        goes_on = epoch.number == self.epoch  # on another node, which could not be reached
        self.seq = max(self.seq, epoch.seq) if goes_on else epoch.seq
        self.epoch = epoch.number
        self.origin, self.term = origin, epoch.term
        self._told_unencodable = False
        for consumer in self.fanout.audience:
            consumer.begin_epoch()
        if self.renditions is not None:
            self.renditions.forget()
        self._register_layers(layers)
        self.change_owner(owner_id)
        self.producer, self._awaiting_keyframe = producer, True
        self.set_status(epoch.status, metadata)

    def enter(self, account: FrameAccount | None) -> None:
        """Count frames for this account from now on, or for none."""
        if self.account is not None:
            self.account.streams.pop(self, None)
        self.account = account
        if account is not None:
            account.streams[self] = None

    def change_owner(self, owner_id: str | None) -> None:
        """Go by another owner, or by none, while the stream is not live: consumers that may no
        longer see it get nothing more, and those that may see it now begin as new ones do."""
        before = {consumer for consumer in self.watchers if self.may_see(consumer)}
        self.owner_id = owner_id
        for consumer in self.watchers:
            sees = self.may_see(consumer)
            if consumer in before and not sees:
                consumer.close()
            elif sees and consumer not in before:
                consumer.reopen()
                if consumer.wants_frames:
                    consumer.use_layers(self._current_layers, self.seq)
        self._set_audience(tuple(filter(self._serves, self.watchers)))

    def attach(self, producer: Producer, layers: Sequence[Layer] | None) -> None:
        """Get frames from what stands for the producer on another node."""
        self.producer = producer
        if layers != self._registered_layers:
            self._register_layers(layers)
        self.tell_producer()

    def continue_with(
        self,
        producer: Producer,
        metadata: Metadata | None,
        *,
        layers: Sequence[Layer] | None = None,
    ) -> None:
        """Go on with this producer; consumers notice nothing except changed metadata, and other
        layers."""
        if producer is not self.producer:
            self._awaiting_keyframe, self._told_unencodable = True, False
            self._picture = LastPicture()
            self._expect_pictures()
        if layers != self._registered_layers:
            self._register_layers(layers)
            self._awaiting_keyframe = True  # an encoder of another size begins with one
        self.producer = producer
        self.describe(metadata)
        self._tell_edges()

    def describe(self, metadata: Metadata | None) -> None:
        """Go by this metadata, and tell it if it is not as before."""
        if metadata != self.metadata:
            self._describe(metadata)
            self._expect_pictures()
            self._tell_watchers({} if metadata is None else metadata)
            self._tell_nodes()

    def _register_layers(self, layers: Sequence[Layer] | None) -> None:
        """Expect these layers of each picture from now on, or frames without layers."""
        self._registered_layers, self._told_layers = layers, None
        self._picture = LastPicture()
        self.layers = None
        if layers is not None:
            known = [StreamLayer(layer.id, layer.width) for layer in layers]
            self.layers = LayerSet(known, from_producer=True, on_need=self._needs_changed)
        self._use_layers(self._current_layers, self.seq)

    @property
    def registered_layers(self) -> Sequence[Layer] | None:
        """As the producer named them."""
        return self._registered_layers

    def _needs_changed(self) -> None:
        """Tell the producer, at once if a layer is needed that it does not send yet."""
        if self.layers is None or self._told_layers is None:
            return
        if set(self.needed_layers()) - set(self._told_layers) and self._may_tell_at_once():
            self.tell_producer()
        elif not self.counting:
            self.on_recount(self)

    def needed_layers(self) -> list[str]:
        """The layers of the producer that somebody needs, by their ids."""
        if self.layers is None or not (self.viewers or self.standby):
            return []
        needed = set(self.layers.needed()) if self.fanout.audience else set()
        if self.recorders or self.standby:
            needed.add(self.layers.top)
        for demand in self.edges.values():
            found = map(self.layers.index_of, demand.layers)
            needed.update(index for index in found if index is not None)
        return [self.layers.layers[index].id for index in sorted(needed)]

    def _describe(self, metadata: Metadata | None) -> None:
        self.metadata = metadata
        self.metadata_bytes = 0 if metadata is None else len(JSON_CODEC.pack(metadata))

    def end(self) -> None:
        self.producer = None
        self._register_layers(None)
        self.fanout.forget_frames()
        if self.ring is not None:
            self.ring.end()
        self._describe(None)  # those who watch it keep the stream
        self.set_status(StreamStatus.OFFLINE)

    def set_status(self, status: StreamStatus, metadata: Metadata | None = None) -> None:
        self._count(-1)
        self.status = status
        self._count(1)
        self._tell_watchers(metadata)
        if self.remote.is_news(self):
            told = {consumer.peer for consumer in self.watchers}  # by what watches the stream
            self._observers.tell(self.public_status(visible=True), self.owner_id, but=told)
        self._tell_edges()
        self._tell_nodes()
        self.on_presence(self)

    def move_to(self, origin: str | None, term: int) -> None:
        """Note that another node has the producer now, or this one."""
        self._count(-1)
        self.origin, self.term = origin, term
        self._count(1)
        self.on_presence(self)

    def come_here(self, epoch: Epoch) -> None:
        """Go on with a producer of this node, from where another node has left off."""
        if epoch.term:
            self.move_to(None, epoch.term)
        if 0 < self.seq < epoch.seq:
            self.give_up_lossless()  # what came last did not come here
        self.seq = max(self.seq, epoch.seq)

    def _count(self, change: int) -> None:
        """Count it by its status, if it is produced here: nodes add up what they count."""
        if self.live and self.origin is None:
            self._totals.streams[self.status] += change

    def _tell_nodes(self) -> None:
        """Let other nodes know of a change to what is produced here."""
        if self.origin is None:
            self.remote.changed(self)

    def _tell_edges(self) -> None:
        """Tell other nodes that carry the stream what has changed about it."""
        for edge in self.edges:
            cast("EdgePeer", edge.peer).tell_stream(self)

    def watch_edge(self, edge: Consumer, demand: EdgeDemand) -> None:
        """Add the subscription of another node, which wants this for its viewers."""
        self.edges[edge] = demand
        self.watch(edge)
        if demand.layers:
            self._needs_changed()

    def set_demand(self, edge: Consumer, demand: EdgeDemand) -> None:
        """Note what another node wants for its viewers now."""
        before, self.edges[edge] = self.edges[edge], demand
        if demand.layers != before.layers:
            self._needs_changed()
        if self.viewers != self._told_count and not self.counting:
            self.on_recount(self)
        self.on_presence(self)

    def status_for(self, consumer: Consumer) -> Status:
        """The status as this consumer may know it."""
        return self.public_status(visible=self.may_see(consumer))

    def public_status(self, *, visible: bool) -> Status:
        """The status as shown to a peer that may see the stream, or may not."""
        if not (self.live and visible):
            return Status(stream_id=self.stream_id, epoch=0, status=StreamStatus.OFFLINE)
        return Status(stream_id=self.stream_id, epoch=self.epoch, status=self.status)

    def tell_producer(self) -> None:
        """Tell the producer how many consume its frames."""
        self._told_count = self.viewers
        self._told_layers = None if self.layers is None else self.needed_layers()
        if self.producer is not None:
            self.producer.tell_status(
                Status(
                    stream_id=self.stream_id,
                    epoch=self.epoch,
                    status=self.status,
                    consumers=self._told_count,
                    layers=self._told_layers,
                    standby=self.standby,
                )
            )

    def notify_producer(self, notice: Notice) -> None:
        """Tell the producer, if there is one."""
        if self.producer is not None:
            self.producer.tell(notice)

    def want_keyframe(self, sender: str) -> None:
        """Ask the producer for a keyframe that viewers on another node need."""
        self._keyframe_requests.make(sender)

    def tell_count(self) -> None:
        """Tell the producer the number of consumers, and the layers that they need, if these have
        changed since."""
        self.counting = False
        layers = None if self.layers is None else self.needed_layers()
        # Another node also has to know whether there are viewers who must miss nothing.
        if self.is_remote or self.viewers != self._told_count or layers != self._told_layers:
            self.tell_producer()
        if self.layers is not None and self.layers.is_lingering:
            self.on_recount(self)

    def _tell_watchers(self, metadata: Metadata | None) -> None:
        packed: dict[Codec, Any] = {}  # encoded once, however many watch
        for consumer in self.watchers:
            if self.may_see(consumer):
                codec = consumer.peer.codec
                if metadata is not None and codec not in packed:
                    packed[codec] = codec.pack(metadata)
                status = self.status_for(consumer)
                told = msgspec.structs.replace(status, metadata=packed.get(codec))
                consumer.peer.tell_status(told)

    def _serves(self, consumer: Consumer) -> bool:
        return consumer.wants_frames and self.may_see(consumer)

    def _without(self, consumer: Consumer) -> tuple[Consumer, ...]:
        """The audience without one consumer."""
        return tuple(other for other in self.fanout.audience if other is not consumer)

    def _set_audience(self, audience: tuple[Consumer, ...]) -> None:
        was_watched = bool(self.fanout.audience)
        self.fanout.audience = audience
        if self.origin is not None and self.producer is None:
            if audience:
                self.remote.wanted(self)
            elif was_watched:
                self.forget_carried()
        elif bool(audience) != was_watched and self._may_tell_at_once():
            self.tell_producer()
        elif self.viewers != self._told_count and not self.counting:
            self.on_recount(self)
        self.on_presence(self)

    def _may_tell_at_once(self) -> bool:
        if self._switches is None:
            self._switches = DebtBucket(SWITCH_RATE, MAX_SWITCHES)
        return self._switches.take(1, trio.current_time())
