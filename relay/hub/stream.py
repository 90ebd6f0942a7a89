"""One stream: who produces it, who watches it, and its status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast
from weakref import ref

import msgspec
import structlog
import trio
from attrs import define, field, frozen

from relay.concurrency.time_slice import TimeSlice
from relay.guard.throttle import DebtBucket
from relay.hub.consumer import Consumer
from relay.hub.fanout import FanOut
from relay.hub.frames.frame import Frame, bursts
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.frames.picture_ring import PictureListener, PictureRing
from relay.hub.keyframe_requests import KeyframeRequests
from relay.hub.layers.layer_set import LayerSet, PictureLayer, StreamLayer
from relay.hub.layers.renditions import RenditionJob, Renditions
from relay.hub.ledger import Totals
from relay.hub.observers import Observers
from relay.hub.peer import EdgePeer, Producer
from relay.hub.remote import Epoch, LocalOnly, RemoteStreams
from relay.metrics import Limit, Metrics
from relay.model.access import permissions
from relay.model.targets.stream_event import StreamPresence
from relay.protocol.codec import JSON_CODEC, Codec
from relay.protocol.messages import (
    Error,
    ErrorCode,
    Layer,
    Metadata,
    Notice,
    Status,
    StreamStatus,
    VideoFrame,
    now_ms,
)

SWITCH_RATE, MAX_SWITCHES = 1.0, 4.0
"""How often a second, and in a row, a producer is told at once that somebody watches or nobody: a
viewer that comes and goes must not take its link."""

log = structlog.get_logger()


@define(eq=False)
class LastPicture:
    """The layers that have come of one picture."""

    timestamp: float | None = None
    indexes: set[int] = field(factory=set)

    def goes_on_with(self, timestamp: float | None, index: int) -> bool:
        """Whether a frame is another layer of it; without a timestamp it never is."""
        return timestamp is not None and timestamp == self.timestamp and index not in self.indexes


@frozen
class EdgeDemand:
    """What another node wants for its viewers."""

    viewers: int = 1
    layers: frozenset[str] = frozenset()
    """The ids of the layers that they need."""


@define(eq=False)
class Stream:
    """A stream that is produced or watched."""

    stream_id: str
    _metrics: Metrics
    _observers: Observers
    _totals: Totals
    owner_id: str | None = None
    """None until it is registered while this relay runs."""
    epoch: int = 0
    """The epoch in which `seq` counts: ms since the Unix epoch at its start."""
    seq: int = 0
    status: StreamStatus = StreamStatus.OFFLINE
    account: FrameAccount | None = None
    """Of its owner; counts the frames that are kept."""
    metadata: Metadata | None = None
    metadata_bytes: int = 0
    """Its size as JSON."""
    producer: Producer | None = None
    watchers: dict[Consumer, None] = field(factory=dict)
    """All subscriptions, whether or not they may see the stream."""
    fanout: FanOut = field(init=False)
    """Gives frames to the watchers that may see the stream and want frames."""
    grace: trio.CancelScope | None = None
    """Around the wait for the producer to come back."""
    on_recount: Callable[[Stream], object] = field(default=lambda _stream: None)
    """The audience is not as large as the producer was told: call `tell_count` before long."""
    counting: bool = False
    """Whether that call is scheduled."""
    on_presence: Callable[[Stream], object] = field(default=lambda _stream: None)
    """Called when it may have gone online or offline, or be watched or not any more."""
    layers: LayerSet | None = None
    """Those that the producer registered."""
    renditions: Renditions | None = None
    """Those that the relay makes where the producer registered none; None if it makes none."""
    start_soon: Callable[[Callable[[], Awaitable[None]]], object] = lambda _task: None
    """Starts a task of the hub."""
    remote: RemoteStreams = field(factory=LocalOnly)
    origin: str | None = None
    """The node that its producer is connected to; None: this one."""
    term: int = 0
    """Of the origin, in a cluster."""
    edges: dict[Consumer, EdgeDemand] = field(factory=dict)
    """The subscriptions of other nodes, with what they want for their viewers."""
    ring: PictureRing | None = None
    """The pictures of the last seconds; None while nobody wants them."""
    recorders: int = 0
    """Those within the relay that want frames for a while, as viewers do."""
    _registered_layers: Sequence[Layer] | None = None
    _picture: LastPicture = field(factory=LastPicture)
    """The picture that came last, in a stream with layers."""
    _told_count: int = 0
    _keyframe_requests: KeyframeRequests = field(init=False)
    _told_layers: Sequence[str] | None = None
    _switches: DebtBucket | None = None
    """Limits how often the producer is told at once that there are viewers, or none."""
    _awaiting_keyframe: bool = True
    """Whether the producer has not yet sent a frame that a delta could build on."""
    _told_unencodable: bool = False

    def __attrs_post_init__(self) -> None:
        self.fanout = FanOut(self._metrics, self._totals)
        self._keyframe_requests = KeyframeRequests(ref(self))

    @property
    def live(self) -> bool:
        return self.status is not StreamStatus.OFFLINE

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

    async def publish(self, messages: Sequence[VideoFrame], producer: Producer) -> None:
        """Accept frames, and give them to the audience, as long as they come from its producer."""
        fanout = self.fanout
        time_slice = TimeSlice() if len(messages) > 1 else None
        for burst in bursts(messages):
            # Metadata in another encoding is taken apart, and may take longer than the offers.
            if fanout.is_pause_due or (time_slice is not None and time_slice.over):
                await fanout.pause()
                time_slice = TimeSlice()
            # The last frame of a producer that was taken over may still be on its way to the rest.
            if not await self._is_ready(producer):
                return
            # No other task has its turn between here and the first offer, but for a large frame.
            frames = self._accept(burst, producer.codec)
            if frames[0].is_large and not await self._has_encoded(frames[0], producer):
                continue
            self._look_for_renditions(frames)
            if not (self.fanout.is_ready or await self._have_layers(frames, producer)):
                continue
            job = self._plan_renditions(frames)
            await fanout.publish(frames)
            if job is not None:
                self.start_soon(partial(self._render, job))
            self._keep_within_budget()
            if not (self._told_unencodable or producer.codec.binary) and any(
                frame.unencodable for frame in frames
            ):
                self._tell_unencodable()
            del frames  # nobody counts what is only held here

    async def _is_ready(self, producer: Producer) -> bool:
        """Wait until the audience can be offered a frame of this producer; returns whether it still
        is that."""
        while self.producer is producer and not self.fanout.is_ready:
            await self.fanout.wait_until_ready()
        return self.producer is producer

    async def carry(self, frames: list[Frame], producer: Producer) -> None:
        """Give frames to the audience that were accepted, and numbered, on another node."""
        for burst in bursts([each.message for each in frames]):
            some, frames = frames[: len(burst)], frames[len(burst) :]
            if not await self._is_ready(producer):
                return
            if fresh := [each for each in some if self._is_fresh(each)]:
                await self._publish_carried(fresh, producer)
            else:
                self._show_newcomers(some[-1])

    def _show_newcomers(self, frame: Frame) -> None:
        """Give a frame that came again, after an outage, to those who came meanwhile."""
        if self.fanout.keyframe is None and not frame.is_delta:
            self.fanout.begin_with(frame, behind_latest=frame.seq < self.seq)
            for consumer in self.fanout.audience:
                if not consumer.ledger.accepted:
                    self.fanout.welcome(consumer)

    async def _publish_carried(self, frames: list[Frame], producer: Producer) -> None:
        if self.status is StreamStatus.ONLINE:
            self.set_status(StreamStatus.STREAMING)
        self._look_for_renditions(frames)
        if not (self.fanout.is_ready or await self._have_layers(frames, producer)):
            return
        job = self._plan_renditions(frames)
        await self.fanout.publish(frames)
        if job is not None:
            self.start_soon(partial(self._render, job))
        self._keep_within_budget()
        if not self._told_unencodable and any(frame.unencodable for frame in frames):
            self._tell_unencodable()

    def give_up_lossless(self) -> None:
        """End the connections of those who must miss no frame, since one did not come here."""
        for consumer in self.fanout.audience:
            if consumer.lossless:
                consumer.give_up()

    def forget_carried(self) -> None:
        """Forget the frames of another node, which nobody watches any more: when somebody does,
        the last one comes again, be it the same."""
        self.fanout.forget_frames()
        self.seq, self._picture = 0, LastPicture()

    def _is_fresh(self, frame: Frame) -> bool:
        """Whether the audience cannot have got a frame over an earlier link; note it then."""
        layers, layer = self.layers, frame.layer
        if frame.seq > self.seq:
            self.seq = frame.seq
            self._picture = LastPicture(frame.message.timestamp)
            if layers is not None:
                layers.begin_picture(self.seq)
        elif frame.seq < self.seq or layer is None or layer.index in self._picture.indexes:
            return False
        if layers is not None and layer is not None:
            self._picture.indexes.add(layer.index)
            layers.note(layer.index, frame.size, keyframe=frame.keyframe)
        return True

    async def _has_encoded(self, frame: Frame, producer: Producer) -> bool:
        """Encode a large frame for its audience, while others have a turn now and then; returns
        whether the stream still waits for it."""
        frame.keep()
        epoch = self.epoch
        takers = [each for each in self.fanout.audience if each.would_take(frame)]
        forms = {(each.codec, each.takes_parts) for each in takers}
        with trio.CancelScope(shield=True):
            for codec, in_parts in forms:
                await frame.encode(codec, in_parts=in_parts)
        return self._goes_on(producer, epoch, frame.seq)

    def _keep_within_budget(self) -> None:
        if self.account is not None and self.account.keep_within_limits():
            self._metrics.limits_hit[Limit.FRAME_BUFFER] += 1

    def _accept(self, messages: Sequence[VideoFrame], codec: Codec) -> list[Frame]:
        received_at, now = now_ms(), trio.current_time()
        assert self.account is not None
        frames = []
        for message in messages:
            layer = self._begin_frame(message)
            frame = Frame(
                *(self.stream_id, self.seq, received_at, now, message, codec, self.account),
                layer=layer,
            )
            frames.append(frame)
            if layer is not None and self.layers is not None:
                self.layers.note(layer.index, frame.size, keyframe=message.keyframe)
            if message.keyframe is not False:
                self._awaiting_keyframe = False
            elif self._awaiting_keyframe:
                frame.missing_reference = True
        self._metrics.frames_accepted += len(frames)
        if self.ring is not None:
            self.ring.add(frames)
        if self.status is StreamStatus.ONLINE:
            self.set_status(StreamStatus.STREAMING)
        return frames

    def _begin_frame(self, message: VideoFrame) -> PictureLayer | None:
        """Count a picture if one begins with this frame; returns which layer of it this is."""
        layers = self.layers
        if layers is None:
            self.seq += 1
            return None
        found = None if message.layer is None else layers.index_of(message.layer)
        index = layers.top if found is None else found
        if not self._picture.goes_on_with(message.timestamp, index):
            self._picture = LastPicture(message.timestamp)
            self.seq += 1
            layers.begin_picture(self.seq)
        self._picture.indexes.add(index)
        return PictureLayer(index, layers.layers[index].id)

    def has_layer(self, layer_id: str) -> bool:
        """Whether the producer registered this layer."""
        return self.layers is not None and self.layers.index_of(layer_id) is not None

    def _look_for_renditions(self, frames: Sequence[Frame]) -> None:
        """Look whether there are to be other renditions from these frames on."""
        renditions = self.renditions
        if renditions is None or self.layers is not None:
            return
        if renditions.look_at(frames[-1], self._may_want_renditions):
            self._use_layers(renditions.layers, frames[0].seq - 1)

    def _plan_renditions(self, frames: Sequence[Frame]) -> RenditionJob | None:
        """Say which smaller pictures are to be made of the newest of these frames, if any."""
        renditions, newest = self.renditions, frames[-1]
        if renditions is None or self.layers is not None:
            return None
        for frame in frames[:-1]:
            renditions.note(frame)
        assert self.owner_id is not None
        return renditions.plan(newest, self.owner_id)

    def _may_want_renditions(self) -> bool:
        return any(each.may_want_smaller for each in self.fanout.audience)

    async def _render(self, job: RenditionJob) -> None:
        """Make smaller pictures, and give them to those who await them."""
        assert self.renditions is not None
        try:
            frames = await self.renditions.make(job)
            if self.live and self._current_layers is job.layers:  # else they are of another epoch
                await self.fanout.offer_awaited(job.frame.seq, frames)
                self._keep_within_budget()
        except Exception:  # whatever it fails with, other streams go on
            log.exception("renditions failed", stream_id=self.stream_id)

    def _use_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Let the audience choose from these layers of pictures behind `seq`."""
        if self.fanout.use_layers(layers, seq):
            # No picture may come before it is asked for.
            self.start_soon(self.fanout.finish_rollout)

    async def _have_layers(self, frames: Sequence[Frame], producer: Producer) -> bool:
        """Let the whole audience choose from the layers that these frames are of; returns whether
        the stream still waits for them."""
        for frame in frames:
            frame.keep()
        epoch, seq = self.epoch, self.seq
        with trio.CancelScope(shield=True):
            await self.fanout.finish_rollout()
        return self._goes_on(producer, epoch, seq)

    def _goes_on(self, producer: Producer, epoch: int, seq: int) -> bool:
        """Whether the last frame is still the one that was accepted then. If not, nobody gets that
        one, and those who must miss none are ended."""
        if (self.producer, self.epoch, self.seq) == (producer, epoch, seq):
            return True
        if self.epoch == epoch:
            self.give_up_lossless()
        return False

    @property
    def _current_layers(self) -> LayerSet | None:
        if self.layers is not None:
            return self.layers
        return None if self.renditions is None else self.renditions.layers

    def skip(self, producer: Producer) -> None:
        """Note that frames of the producer were dropped before they arrived here."""
        if self.producer is producer:
            self._awaiting_keyframe = True

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

    def _expect_pictures(self) -> None:
        """Treat what comes as single pictures until there is one that others build on: it may be of
        another kind than before."""
        for consumer in self.fanout.audience:
            consumer.expect_pictures()

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

    def note_unencodable(self) -> None:
        """Note that viewers on another node miss frames whose data is not base64."""
        if not self._told_unencodable:
            self._tell_unencodable()

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

    def _tell_unencodable(self) -> None:
        self._told_unencodable = True
        if self.producer is not None:
            self.producer.tell(
                Error(
                    code=ErrorCode.INVALID_MESSAGE,
                    message="Invalid message: data is not base64; viewers cannot show such frames,"
                    " or miss them - at `$.data`",
                    stream_id=self.stream_id,
                )
            )

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
