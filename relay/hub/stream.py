"""One stream: who produces it, who watches, and where it stands. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import trio
from attrs import define, field

from relay import policy
from relay.hub.consumer import Consumer
from relay.hub.frame import Burst, Frame, bursts
from relay.hub.ledger import Ledger
from relay.hub.peer import Producer
from relay.metrics import Metrics
from relay.protocol.codec import Codec
from relay.protocol.messages import (
    Error,
    ErrorCode,
    Metadata,
    Status,
    StreamStatus,
    VideoFrame,
    now_ms,
)

SLICE = 64
"""Offers that are made in one go, before other tasks have their turn."""


@define(eq=False)
class Stream:
    """A stream that somebody produces or watches."""

    stream_id: str
    _metrics: Metrics
    owner_id: str | None = None
    """None until it is registered while this relay runs."""
    epoch: int = 0
    """Which life of the stream `seq` counts in: ms since the Unix epoch at its start."""
    seq: int = 0
    status: StreamStatus = StreamStatus.OFFLINE
    metadata: Metadata | None = None
    producer: Producer | None = None
    watchers: dict[Consumer, None] = field(factory=dict)
    """All who subscribed, whether or not they may see it."""
    audience: tuple[Consumer, ...] = ()
    """Those of them that get its frames. Replaced, never changed, so that a publish may yield."""
    grace: trio.CancelScope | None = None
    """Around the wait for the producer to come back."""
    departed: Ledger = field(factory=Ledger)
    """What became of the frames of consumers that have left."""
    on_status: Callable[[Stream], object] = field(default=lambda _stream: None)
    on_recount: Callable[[Stream], object] = field(default=lambda _stream: None)
    """The audience is not as large as the producer was told: call `tell_count` before long."""
    counting: bool = False
    """Whether somebody will."""
    _told_count: int = 0
    _latest: Frame | None = None
    _keyframe: Frame | None = None
    """The last frame that stands for itself."""
    _unbased: bool = True
    """Whether the producer has sent nothing yet that a delta could build on."""
    _told_unencodable: bool = False
    _since_pause: int = 0
    """Offers since other tasks had their turn."""
    _publishing: trio.Lock = field(factory=trio.Lock)

    @property
    def live(self) -> bool:
        return self.status is not StreamStatus.OFFLINE

    async def publish(self, messages: Sequence[VideoFrame], producer: Producer) -> None:
        """Offer frames to the whole audience, in order, as long as they come from its producer.

        Yields to other tasks each time that `SLICE` offers are made.
        """
        for burst in bursts(messages):
            while self.producer is producer and self._publishing.locked():
                # A taken-over producer's last frame is still on its way to the rest. Whoever
                # waited may find that the lock was handed on meanwhile.
                async with self._publishing:
                    pass
            if self.producer is not producer:
                return
            # No other task has its turn between here and the first offer.
            await self._offer_to_all(self._accept(burst, producer.codec))

    def _accept(self, messages: Sequence[VideoFrame], codec: Codec) -> list[Frame]:
        received_at, now = now_ms(), trio.current_time()
        frames = []
        for message in messages:
            self.seq += 1
            frame = Frame(self.stream_id, self.seq, received_at, now, message, codec)
            frames.append(frame)
            self._latest = frame
            if not frame.is_delta:
                self._keyframe, self._unbased = frame, False
            elif self._unbased:
                frame.baseless = True
        self._metrics.frames_accepted += len(frames)
        if self.status is StreamStatus.ONLINE:
            self.set_status(StreamStatus.STREAMING)
        return frames

    async def _offer_to_all(self, frames: list[Frame]) -> None:
        """Not to be cancelled: what was accepted is offered to everybody."""
        audience, step = self.audience, max(1, SLICE // len(frames))
        offered = frames[0] if len(frames) == 1 else Burst(frames)
        if len(audience) <= step:
            await self._offer(offered, audience)
        else:
            self._publishing.acquire_nowait()
            try:
                for start in range(0, len(audience), step):
                    await self._offer(offered, audience[start : start + step])
            finally:
                self._publishing.release()
        if not self._told_unencodable and any(frame.unencodable for frame in frames):
            self._tell_unencodable()

    def skip(self, producer: Producer) -> None:
        """Frames of the producer were dropped on the way here: no delta builds on them."""
        if self.producer is producer:
            self._unbased = True

    def watch(self, consumer: Consumer) -> None:
        """Add a consumer; if it may see the stream, the latest frame is offered at once.

        Where frames build on one another, that is the last one that does not.
        """
        self.watchers[consumer] = None
        if self._serves(consumer):
            self._set_audience((*self.audience, consumer))
            if self._keyframe is not None:
                self._welcome(consumer, self._keyframe)
            if self._keyframe is not self._latest:
                consumer.skip_to_keyframe()

    def reveal(self, consumer: Consumer) -> None:
        """A consumer may see the stream from now on: begin as with a new one."""
        if self.live:
            consumer.peer.tell(self.status_for(consumer))
        consumer.reopen()
        self.watch(consumer)

    def conceal(self, consumer: Consumer) -> None:
        """A consumer may see the stream no longer: to them it is gone, as if there were none."""
        consumer.close()
        self._set_audience(tuple(other for other in self.audience if other is not consumer))
        if self.live:
            consumer.peer.tell(self.status_for(consumer))

    def unwatch(self, consumer: Consumer) -> None:
        consumer.close()
        if consumer in self.watchers:
            del self.watchers[consumer]
            self.departed.add(consumer.ledger)
        self._set_audience(tuple(other for other in self.audience if other is not consumer))

    def may_see(self, consumer: Consumer) -> bool:
        return policy.may_watch(consumer.identity, self.stream_id, self.owner_id)

    def start(
        self, epoch: int, owner_id: str, producer: Producer, metadata: Metadata | None
    ) -> None:
        """Begin a new life of the stream."""
        self.owner_id, self.metadata = owner_id, metadata
        self.epoch, self.seq = epoch, 0
        self._told_unencodable = False
        for consumer in self.audience:
            consumer.begin_life()
        self._set_audience(tuple(filter(self._serves, self.watchers)))
        self.producer, self._unbased = producer, True
        self.set_status(StreamStatus.ONLINE, metadata)

    def continue_with(self, producer: Producer, metadata: Metadata | None) -> None:
        """Go on with this producer; consumers notice nothing but metadata that is another."""
        self._unbased = self._unbased or producer is not self.producer
        self.producer, before, self.metadata = producer, self.metadata, metadata
        if metadata != before:
            self._tell_watchers({} if metadata is None else metadata)

    def end(self) -> None:
        self.producer, self._latest, self._keyframe = None, None, None
        self.set_status(StreamStatus.OFFLINE)

    def set_status(self, status: StreamStatus, metadata: Metadata | None = None) -> None:
        self.status = status
        self._tell_watchers(metadata)
        self.on_status(self)

    def ledger(self) -> tuple[Ledger, int]:
        """What became of all frames offered to consumers, and how many of them wait."""
        total, waiting = Ledger(), 0
        total.add(self.departed)
        for consumer in self.watchers:
            total.add(consumer.ledger)
            waiting += consumer.waiting_frames
        return total, waiting

    def figures(self) -> dict[str, Any]:
        """For operators: where the stream stands, and what became of its frames."""
        return {
            "streamId": self.stream_id,
            "status": self.status,
            "epoch": self.epoch,
            "frames": self.seq,
            "producer": None if self.producer is None else self.producer.accepted,
            "consumers": [
                {
                    "connection": consumer.peer.accepted,
                    "frames": consumer.ledger.accepted,
                    "written": consumer.ledger.written,
                    "dropped": dict(consumer.ledger.dropped),
                    "waiting": consumer.waiting_frames,
                }
                for consumer in self.watchers
            ],
        }

    def status_for(self, consumer: Consumer) -> Status:
        """The status as this consumer may know it."""
        return self.public_status(visible=self.may_see(consumer))

    def public_status(self, *, visible: bool) -> Status:
        """The status as those may know it who see the stream, or do not."""
        if not (self.live and visible):
            return Status(stream_id=self.stream_id, epoch=0, status=StreamStatus.OFFLINE)
        return Status(stream_id=self.stream_id, epoch=self.epoch, status=self.status)

    def tell_producer(self) -> None:
        """Tell the producer how many consume its frames."""
        self._told_count = len(self.audience)
        if self.producer is not None:
            self.producer.tell(
                Status(
                    stream_id=self.stream_id,
                    epoch=self.epoch,
                    status=self.status,
                    consumers=len(self.audience),
                )
            )

    def tell_count(self) -> None:
        """Tell the producer what has changed since it was told how many there are."""
        self.counting = False
        if len(self.audience) != self._told_count:
            self.tell_producer()

    def _tell_watchers(self, metadata: Metadata | None) -> None:
        for consumer in self.watchers:
            if self.may_see(consumer):
                status = self.status_for(consumer)
                consumer.peer.tell(msgspec.structs.replace(status, metadata=metadata))

    def _welcome(self, consumer: Consumer, frame: Frame) -> None:
        """Offer a frame from before this consumer came."""
        if consumer.offer(frame):
            self._metrics.frame_age.observe(trio.current_time() - frame.accepted_at)

    async def _offer(self, offered: Frame | Burst, audience: Sequence[Consumer]) -> None:
        written = 0
        if isinstance(offered, Frame):
            frames, accepted_at = 1, offered.accepted_at
            for consumer in audience:
                written += consumer.offer(offered)
        else:
            frames, accepted_at = len(offered.frames), offered.frames[0].accepted_at
            for consumer in audience:
                written += consumer.offer_burst(offered)
        # One look at the clock for all of them; it errs on the side of older.
        self._metrics.frame_age.observe(trio.current_time() - accepted_at, written)
        self._since_pause += frames * max(1, len(audience))
        if self._since_pause >= SLICE:
            self._since_pause = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _tell_unencodable(self) -> None:
        self._told_unencodable = True
        if self.producer is not None:
            self.producer.tell(
                Error(
                    code=ErrorCode.INVALID_MESSAGE,
                    message="Invalid message: data is not base64; viewers that speak"
                    " MessagePack miss such frames - at `$.data`",
                    stream_id=self.stream_id,
                )
            )

    def _serves(self, consumer: Consumer) -> bool:
        return consumer.wants_frames and self.may_see(consumer)

    def _set_audience(self, audience: tuple[Consumer, ...]) -> None:
        was_watched = bool(self.audience)
        self.audience = audience
        if bool(audience) != was_watched:
            self.tell_producer()
        elif len(audience) != self._told_count and not self.counting:
            self.on_recount(self)
