"""Stands at an edge for the producer of a stream that another node has."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from attrs import define, field

from relay.cluster.streams.messages import Carry, FromEdge, Unencodable, WantKeyframe
from relay.hub.frames.frame import Frame
from relay.hub.stream import Stream
from relay.model.access.identity import ANY_STREAM, Identity, Service
from relay.protocol.codec import MSGPACK_CODEC, Codec
from relay.protocol.messages import AlertEvent, Notice, ServerMessage, Status

MAX_INLINE_VIEWERS = 128
"""Viewers of a stream whose frames are given out before the link is read further."""
MAX_QUEUED_FRAMES = 32
"""Frames of a stream that wait for its viewers to be given the one before."""
MAX_QUEUED_BYTES = 16 << 20
"""Their bytes; one frame fits always."""

CLUSTER = Service(name="cluster", consume=frozenset({ANY_STREAM}), alerts=False, operate=False)
"""The identity of other nodes: who may see what is decided where the viewers are."""


class OriginSide(Protocol):
    """The link to the node that a stream comes from."""

    def post(self, message: FromEdge) -> object:
        """Send a message; never waits."""

    def drop(self, producer: RemoteProducer) -> object:
        """Get no more of a stream."""


@define(eq=False)
class RemoteProducer:
    """Stands for the producer of a stream that another node has. A `Producer`."""

    stream: Stream
    _link: OriginSide
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
