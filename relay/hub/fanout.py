"""Gives the frames of one stream to its audience.

Where the frames come from, a producer on this relay or another node, makes no difference here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import trio
from attrs import define, field

from relay.hub.consumer import MAX_PICTURES_BEHIND, Consumer
from relay.hub.frames.frame import Burst, Frame
from relay.hub.layers.layer_set import LayerSet
from relay.hub.layers.rollout import LayerRollout
from relay.hub.ledger import Totals
from relay.hub.paced_writer import WINDOWED
from relay.metrics import Metrics
from relay.transport.outlet import MIN_HELD_BYTES
from relay.transport.pacing import EARLY, MIN_CALM_PROBE_INTERVAL

SLICE = 64
"""Offers made before other tasks get a turn."""


@define(eq=False)
class FanOut:
    """The audience of one stream, and the frames that a newcomer begins with."""

    _metrics: Metrics
    _totals: Totals
    _clock: trio.abc.Clock = field(factory=trio.lowlevel.current_clock, repr=False)
    """Trio's clock. It is asked for each frame, and quicker so than by `trio.current_time`."""
    audience: tuple[Consumer, ...] = ()
    """Replaced, never changed, so that a publish may yield."""
    keyframe: Frame | None = None
    """The last frame that stands for itself, for newcomers."""
    layer_frames: dict[int, Frame] = field(factory=dict)
    """The same by layer, in a stream that has layers."""
    behind_latest: bool = False
    """Whether newcomers have to wait for the next one: frames that others build on came after it,
    or it was given up."""
    _look_at: float = -math.inf
    """When links are next looked at."""
    _since_pause: int = 0
    """Offers since other tasks last got a turn."""
    _idle: trio.Event | None = None
    """Set when the publish to a large audience is over; None while there is none."""
    _rollout: LayerRollout | None = None
    """Of layers that not the whole audience chooses from yet."""
    _epochs: int = 0
    """How often the frames were forgotten."""
    _welcomed: set[Consumer] | None = None
    """Consumers that came during the publish to a large audience; None while there is none."""

    @property
    def newest(self) -> Frame | None:
        """The picture that is kept, in its largest layer if that is about as new."""
        latest, by_layer = self.keyframe, self.layer_frames
        if latest is None or not by_layer:
            return latest
        largest = by_layer[max(by_layer)]
        return largest if largest.seq >= latest.seq - MAX_PICTURES_BEHIND else latest

    @property
    def busy(self) -> bool:
        """Whether a publish to a large audience is in progress."""
        return self._idle is not None

    async def wait_until_idle(self) -> None:
        """Wait for the publish in progress; another may have begun when this returns."""
        if self._idle is not None:
            await self._idle.wait()

    @property
    def is_ready(self) -> bool:
        """Whether frames may be offered: it is not busy, and the whole audience chooses from the
        same layers."""
        return self._idle is None and self._rollout is None

    async def wait_until_ready(self) -> None:
        """Wait for that; it may be so no more when this returns."""
        await self.wait_until_idle()
        await self.finish_rollout()

    async def publish(self, frames: list[Frame]) -> None:
        """Offer frames that arrived together to the whole audience, in order.

        Call it when it is ready. Yields to other tasks each time that `SLICE` offers are made,
        but not after the last ones: see `is_pause_due`. Cannot be cancelled: what was accepted is
        offered to everybody, unless the stream ends meanwhile.
        """
        now = frames[-1].accepted_at
        if now >= self._look_at:
            self._look_at_links(now)
        audience, step, epoch = self.audience, SLICE // len(frames) or 1, self._epochs
        offered = frames[0] if len(frames) == 1 else Burst(frames)
        if len(audience) <= step:
            self._offer(offered, audience)
            self._remember(frames)  # only now: those who have not received them keep them, too
            return
        for frame in frames:
            frame.keep()
        self._remember(frames)
        assert self._idle is None
        idle = self._idle = trio.Event()
        self._welcomed = set()
        try:
            for start in range(0, len(audience), step):
                if self._since_pause >= SLICE:
                    await self.pause()
                    if self._epochs != epoch:
                        break  # a frame behind the status would be of the next epoch
                some = audience[start : start + step]
                if self._welcomed:  # one that was hidden for that time would get the frame twice
                    some = tuple(each for each in some if each not in self._welcomed)
                self._offer(offered, some)
        finally:
            self._welcomed = self._idle = None
            idle.set()

    def use_layers(self, layers: LayerSet | None, seq: int) -> bool:
        """Let the audience choose from these layers of pictures behind `seq`: a large one bit by
        bit. Returns whether `finish_rollout` is to be called, so that this ends though no frame
        comes."""
        if layers is not None:
            layers.since = seq
        self.layer_frames.clear()
        # A picture in the layers before may still be on its way to some of them.
        audience, at_once = self.audience, 0 if self.busy else SLICE
        for consumer in audience[:at_once]:
            consumer.use_layers(layers, seq)
        if self._rollout is not None:
            self._rollout.stop()
            self._rollout = None
        if len(audience) > at_once:
            self._rollout = LayerRollout(layers, seq, iter(audience[at_once:]))
        return self._rollout is not None

    async def finish_rollout(self) -> None:
        """Let the rest of the audience choose from other layers, while others have a turn."""
        while (rollout := self._rollout) is not None:
            if self.busy:
                await self.wait_until_idle()
                continue
            await rollout.run()
            if self._rollout is rollout:
                self._rollout = None

    @property
    def is_pause_due(self) -> bool:
        """Whether so many offers were made that other tasks should get a turn."""
        return self._since_pause >= SLICE

    async def pause(self) -> None:
        """Give other tasks a turn."""
        self._since_pause = 0
        await trio.lowlevel.cancel_shielded_checkpoint()

    def welcome(self, consumer: Consumer) -> None:
        """Offer a new consumer the latest frame.

        Where frames build on one another, that is the last one that does not.
        """
        if self._welcomed is not None:
            self._welcomed.add(consumer)
        frame = consumer.first_frame(self.keyframe, self.layer_frames)
        if frame is not None and consumer.welcome(frame):
            self._metrics.frame_age.observe(trio.current_time() - frame.accepted_at)
        if self.behind_latest:
            consumer.skip_to_keyframe()

    def begin_with(self, frame: Frame, *, behind_latest: bool = True) -> None:
        """Keep a frame that another node has given to the audience, for newcomers."""
        if self.keyframe is None:
            self.keyframe = frame
            self.behind_latest = behind_latest and frame.keyframe is not None
            frame.keep()

    def forget_frames(self) -> None:
        """Forget the latest frames, so that new consumers get none of them."""
        self.keyframe, self.behind_latest = None, False
        self.layer_frames.clear()
        self._epochs += 1

    def give_up_keyframe(self) -> None:
        """Keep no frame for newcomers, who begin with the next one that stands for itself."""
        self.keyframe, self.behind_latest = None, True
        self.layer_frames.clear()

    def _remember(self, frames: Sequence[Frame]) -> None:
        """Keep the last frame that stands for itself, for newcomers."""
        for frame in frames:
            if frame.layer is not None and not frame.is_delta:
                self.layer_frames[frame.layer.index] = frame
                frame.keep()
        behind = False
        for frame in reversed(frames):
            if not frame.is_delta:
                self.keyframe, self.behind_latest = frame, behind
                frame.keep_unencoded()
                return
            behind = behind or not frame.is_discardable
        self.behind_latest = self.behind_latest or behind

    async def offer_awaited(self, seq: int, frames: Mapping[int, Frame]) -> None:
        """Offer the frames of a picture that were not there when it began, by their layers, to
        those who await them. Yields to other tasks as `publish` does."""
        epoch, accepted_at = self._epochs, trio.current_time()
        for frame in frames.values():
            frame.keep()
            accepted_at = frame.accepted_at
            assert frame.layer is not None
            self.layer_frames[frame.layer.index] = frame
        for consumer in self.audience:
            if self._since_pause >= SLICE:
                await self.pause()
            if self._epochs != epoch:
                return
            if consumer.awaits(seq):
                if consumer.offer_awaited(seq, frames):
                    age = trio.current_time() - accepted_at
                    self._metrics.frame_age.observe(age)
                self._since_pause += 1

    def _look_at_links(self, now: float) -> None:
        """Find out now and then whose next frame is to go with a probe, on calm links: few are,
        since an answer costs much."""
        self._look_at = now + EARLY * MIN_CALM_PROBE_INTERVAL
        for consumer in self.audience:
            if now >= consumer.look_at:
                consumer.look_at_link(now)

    def _offer(self, offered: Frame | Burst, audience: Sequence[Consumer]) -> None:
        if isinstance(offered, Frame):
            frames, accepted_at = 1, offered.accepted_at
            written = self._offer_frame(offered, audience)
        else:
            frames, accepted_at = len(offered.frames), offered.frames[0].accepted_at
            written = sum(consumer.offer_burst(offered) for consumer in audience)
        # One look at the clock for all of them; it errs on the side of older.
        self._metrics.frame_age.observe(self._clock.current_time() - accepted_at, written)
        self._since_pause += frames * (len(audience) or 1)

    def _offer_frame(self, frame: Frame, audience: Sequence[Consumer]) -> int:
        """Offer a frame; returns the number of consumers that it was written to at once.

        This loop is what a frame costs. Nearly all consumers can take it at once, and all that is
        touched for that has left the caches since the frame before. So of a consumer it asks only
        whether anything is in the way, such as a window without room, and tries to write.
        """
        if frame.missing_reference:  # such a frame is of no use to anybody
            return sum(consumer.offer(frame) for consumer in audience)
        written = at_once = size = 0
        codec, encoded = None, None
        in_parts, is_large = frame.is_long, frame.is_large
        for consumer in audience:
            obstacles = consumer.obstacles
            if (obstacles and not (obstacles == WINDOWED and consumer.window_has_room)) or (
                in_parts and consumer.takes_parts
            ):
                written += consumer.offer(frame)
                continue
            if consumer.codec is not codec:
                codec = consumer.codec
                in_steps = is_large and not frame.is_encoded(codec, in_parts=False)
                encoded = None if in_steps else frame.encoded(codec)
                size = 0 if encoded is None else len(encoded)
            if encoded is None:
                written += consumer.offer(frame)
            elif consumer.outlet.write_now(encoded, frame):
                consumer.written_at_once += 1
                at_once += 1
                if obstacles:
                    consumer.note_in_flight(frame)
                if size >= MIN_HELD_BYTES:
                    consumer.note_held(frame)
            else:
                consumer.queue(frame, size)
        self._totals.frames.accepted += at_once
        self._totals.frames.written += at_once
        return written + at_once
