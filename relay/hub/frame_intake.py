"""The frames of one stream, from its producer to its audience."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
import trio
from attrs import define, field

from relay.concurrency.time_slice import TimeSlice
from relay.hub.fanout import FanOut
from relay.hub.frames.frame import Frame, bursts
from relay.hub.frames.frame_budget import FrameAccount
from relay.hub.frames.picture_ring import PictureRing
from relay.hub.layers.layer_set import LayerSet, PictureLayer
from relay.hub.layers.renditions import RenditionJob, Renditions
from relay.hub.ledger import Totals
from relay.hub.peer import Producer
from relay.metrics import Limit, Metrics
from relay.protocol.codec import Codec
from relay.protocol.messages import Error, ErrorCode, StreamStatus, VideoFrame, now_ms

log = structlog.get_logger()


@define(eq=False)
class LastPicture:
    """The layers that have come of one picture."""

    timestamp: float | None = None
    indexes: set[int] = field(factory=set)

    def goes_on_with(self, timestamp: float | None, index: int) -> bool:
        """Whether a frame is another layer of it; without a timestamp it never is."""
        return timestamp is not None and timestamp == self.timestamp and index not in self.indexes


@define(eq=False, kw_only=True)
class FrameIntake:
    """Accepts the frames of a stream, numbers them, and gives them to its audience.

    They come from a producer here, or were accepted on another node. Where smaller pictures are
    wanted, these are made of them. What else a stream is has `Stream`.
    """

    stream_id: str
    _metrics: Metrics
    _totals: Totals
    _clock: trio.abc.Clock = field(factory=trio.lowlevel.current_clock, repr=False)
    """Trio's clock. It is asked for each frame, and quicker so than by `trio.current_time`."""
    owner_id: str | None = None
    """None until it is registered while this relay runs."""
    epoch: int = 0
    """The epoch in which `seq` counts: ms since the Unix epoch at its start."""
    seq: int = 0
    status: StreamStatus = StreamStatus.OFFLINE
    account: FrameAccount | None = None
    """Of its owner; counts the frames that are kept."""
    producer: Producer | None = None
    fanout: FanOut = field(init=False)
    """Gives frames to the watchers that may see the stream and want frames."""
    layers: LayerSet | None = None
    """Those that the producer registered."""
    renditions: Renditions | None = None
    """Those that the relay makes where the producer registered none; None if it makes none."""
    start_soon: Callable[[Callable[[], Awaitable[None]]], object] = lambda _task: None
    """Starts a task of the hub."""
    ring: PictureRing | None = None
    """The pictures of the last seconds; None while nobody wants them."""
    _picture: LastPicture = field(factory=LastPicture)
    """The picture that came last, in a stream with layers."""
    _awaiting_keyframe: bool = True
    """Whether the producer has not yet sent a frame that a delta could build on."""
    _told_unencodable: bool = False

    def __attrs_post_init__(self) -> None:
        self.fanout = FanOut(self._metrics, self._totals)

    def set_status(self, status: StreamStatus) -> None:
        """Go by another status from now on, and tell it."""
        raise NotImplementedError

    @property
    def live(self) -> bool:
        return self.status is not StreamStatus.OFFLINE

    async def publish(self, messages: Sequence[VideoFrame], producer: Producer) -> None:
        """Accept frames, and give them to the audience, as long as they come from its producer."""
        fanout, codec = self.fanout, producer.codec
        time_slice = TimeSlice() if len(messages) > 1 else None
        for burst in bursts(messages):
            # Metadata in another encoding is taken apart, and may take longer than the offers.
            if fanout.is_pause_due or (time_slice is not None and time_slice.over):
                await fanout.pause()
                time_slice = TimeSlice()
            # The last frame of a producer that was taken over may still be on its way to the rest.
            if not fanout.is_ready:
                await self._wait_until_ready(producer)
            if self.producer is not producer:
                return
            # No other task has its turn between here and the first offer, but for a large frame.
            frames = self._accept(burst, codec)
            if frames[0].is_large and not await self._has_encoded(frames[0], producer):
                continue
            await self._offer(frames, producer)
            del frames  # nobody counts what is only held here

    async def _wait_until_ready(self, producer: Producer) -> None:
        """Wait until the audience can be offered a frame, as long as this is the producer."""
        while self.producer is producer and not self.fanout.is_ready:
            await self.fanout.wait_until_ready()

    async def _offer(self, frames: list[Frame], producer: Producer) -> None:
        """Give frames to the audience, and have smaller pictures made of them if it wants any."""
        renditions = None if self.layers is not None else self.renditions
        if renditions is not None and frames[-1].accepted_at >= renditions.look_at:
            self._look_for_renditions(renditions, frames)
        if not (self.fanout.is_ready or await self._have_layers(frames, producer)):
            return
        job = self._plan_renditions(frames)
        await self.fanout.publish(frames)
        if job is not None:
            self.start_soon(partial(self._render, job))
        self._keep_within_budget()
        if not (self._told_unencodable or frames[-1].codec.binary) and any(
            frame.unencodable for frame in frames
        ):
            self._tell_unencodable()

    def _accept(self, messages: Sequence[VideoFrame], codec: Codec) -> list[Frame]:
        received_at, now = now_ms(), self._clock.current_time()
        assert self.account is not None
        frames = []
        for message in messages:
            layer = None
            if self.layers is None:
                self.seq += 1
            else:
                layer = self._begin_layer(self.layers, message)
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

    def _begin_layer(self, layers: LayerSet, message: VideoFrame) -> PictureLayer:
        """Count a picture if one begins with this frame; returns which layer of it this is."""
        found = None if message.layer is None else layers.index_of(message.layer)
        index = layers.top if found is None else found
        if not self._picture.goes_on_with(message.timestamp, index):
            self._picture = LastPicture(message.timestamp)
            self.seq += 1
            layers.begin_picture(self.seq)
        self._picture.indexes.add(index)
        return PictureLayer(index, layers.layers[index].id)

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

    def _keep_within_budget(self) -> None:
        if self.account is not None and self.account.keep_within_limits():
            self._metrics.limits_hit[Limit.FRAME_BUFFER] += 1

    def skip(self, producer: Producer) -> None:
        """Note that frames of the producer were dropped before they arrived here."""
        if self.producer is producer:
            self._awaiting_keyframe = True

    async def carry(self, frames: list[Frame], producer: Producer) -> None:
        """Give frames to the audience that were accepted, and numbered, on another node."""
        for burst in bursts([each.message for each in frames]):
            some, frames = frames[: len(burst)], frames[len(burst) :]
            if not self.fanout.is_ready:
                await self._wait_until_ready(producer)
            if self.producer is not producer:
                return
            if fresh := [each for each in some if self._is_fresh(each)]:
                if self.status is StreamStatus.ONLINE:
                    self.set_status(StreamStatus.STREAMING)
                await self._offer(fresh, producer)
            else:
                self._show_newcomers(some[-1])

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

    def _show_newcomers(self, frame: Frame) -> None:
        """Give a frame that came again, after an outage, to those who came meanwhile."""
        if self.fanout.keyframe is None and not frame.is_delta:
            self.fanout.begin_with(frame, behind_latest=frame.seq < self.seq)
            for consumer in self.fanout.audience:
                if not consumer.ledger.accepted:
                    self.fanout.welcome(consumer)

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

    def _expect_pictures(self) -> None:
        """Treat what comes as single pictures until there is one that others build on: it may be of
        another kind than before."""
        for consumer in self.fanout.audience:
            consumer.expect_pictures()

    def note_unencodable(self) -> None:
        """Note that viewers on another node miss frames whose data is not base64."""
        if not self._told_unencodable:
            self._tell_unencodable()

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

    def has_layer(self, layer_id: str) -> bool:
        """Whether the producer registered this layer."""
        return self.layers is not None and self.layers.index_of(layer_id) is not None

    @property
    def _current_layers(self) -> LayerSet | None:
        if self.layers is not None:
            return self.layers
        return None if self.renditions is None else self.renditions.layers

    def _use_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Let the audience choose from these layers of pictures behind `seq`."""
        if self.fanout.use_layers(layers, seq):
            # No picture may come before it is asked for.
            self.start_soon(self.fanout.finish_rollout)

    def _look_for_renditions(self, renditions: Renditions, frames: Sequence[Frame]) -> None:
        """Look whether there are to be other renditions from these frames on."""
        is_wanted = any(each.may_want_smaller for each in self.fanout.audience)
        if renditions.look(frames[-1], is_wanted=is_wanted):
            self._use_layers(renditions.layers, frames[0].seq - 1)

    def _plan_renditions(self, frames: Sequence[Frame]) -> RenditionJob | None:
        """Say which smaller pictures are to be made of the newest of these frames, if any."""
        renditions = self.renditions
        if renditions is None or renditions.layers is None or self.layers is not None:
            return None
        for frame in frames[:-1]:
            renditions.note(frame)
        assert self.owner_id is not None
        return renditions.plan(frames[-1], self.owner_id)

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
