"""A stream's frames on their way to another node, for all viewers there."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import cast

import trio
from attrs import define, field

from relay.hub.consumer import Consumer
from relay.hub.frames.frame import Frame
from relay.hub.layers.layer_set import LayerSet
from relay.hub.ledger import Drop
from relay.hub.paced_writer import NEEDS_KEYFRAME
from relay.hub.peer import EdgePeer
from relay.hub.queues import MAX_LOSSLESS_FRAMES, LosslessQueue
from relay.protocol.codec import Codec

FOR_OTHER_NODE = 128
"""An obstacle that is always there: frames for other nodes are counted apart from viewers'."""
MAX_RECENT_FRAMES, MAX_RECENT_BYTES = 8, 1 << 20
"""Frames of one stream that wait for a link, and their bytes; one fits always."""
MAX_RECENT_SECONDS = 0.1
"""For which a frame waits before all that waits makes room for the newest."""
MAX_LINK_BYTES = 16 << 20
"""Bytes of all streams that wait for one link; then each stream keeps one frame."""


@define(eq=False)
class LinkBytes:
    """The bytes of frames that wait for one link."""

    waiting: int = 0


@define(eq=False)
class RecentQueue:
    """The newest frames in order: few, small, and none of them old. A `FrameQueue`.

    A viewer's own hiccup costs one viewer a frame; that of a link would cost everybody there. So
    some frames may wait, but not for long.
    """

    link: LinkBytes
    since: float = 0.0
    discardable: bool = False
    _frames: deque[tuple[Frame, int]] = field(factory=deque)
    _bytes: int = 0

    @property
    def count(self) -> int:
        return len(self._frames)

    def has_room_for(self, size: int, now: float) -> bool:
        """Whether another frame may wait behind those that do."""
        if not self._frames:
            return True
        return (
            len(self._frames) < MAX_RECENT_FRAMES
            and self._bytes + size <= MAX_RECENT_BYTES
            and self.link.waiting + size <= MAX_LINK_BYTES
            and now - self.since <= MAX_RECENT_SECONDS
        )

    def add(self, frame: Frame, size: int) -> None:
        """Add a frame; the caller has made room for it."""
        self._frames.append((frame, size))
        self._bytes += size
        self.link.waiting += size
        self._look_at_first()

    def take(self) -> Frame | None:
        if not self._frames:
            return None
        frame, size = self._frames.popleft()
        self._bytes -= size
        self.link.waiting -= size
        self._look_at_first()
        return frame

    def _look_at_first(self) -> None:
        if self._frames:
            first = self._frames[0][0]
            self.since, self.discardable = first.accepted_at, first.is_discardable


@define(eq=False)
class EdgeConsumer(Consumer):
    """Gives all frames of a stream to another node, which chooses for its viewers.

    It is a consumer like any other, except that some frames may wait, that no layer is left out,
    and that its frames are not counted as viewers' are.
    """

    link_bytes: LinkBytes = field(factory=LinkBytes)
    _recent: RecentQueue | None = field(init=False, default=None)
    """Where frames wait, unless none must be missed."""
    _begun: set[int] = field(init=False, factory=set)
    """The layers that a delta may come of: those before it came, from a keyframe on."""

    def __attrs_post_init__(self) -> None:
        super(EdgeConsumer, self).__attrs_post_init__()  # noqa: UP008 (slots)
        self._waiting = self._recent = RecentQueue(self.link_bytes)
        self.obstacles |= FOR_OTHER_NODE

    def use_policy(self, *, lossless: bool) -> None:
        """Miss no frame from now on, as long as there is room, or go on with the newest."""
        if lossless is self.lossless:
            return
        before = self._waiting
        if lossless:
            self._waiting = LosslessQueue(MAX_LOSSLESS_FRAMES, self._lossless_bytes)
            self._recent = None
            self._leave_pacer()
        else:
            self._waiting = self._recent = RecentQueue(self.link_bytes)
            self._join_pacer()
        while (frame := before.take()) is not None:
            self._totals.waiting -= 1
            self._let_wait(frame, frame.size)

    @property
    def may_want_smaller(self) -> bool:
        """It has no use for smaller pictures: they are made where their viewers are."""
        return False

    def use_codec(self, codec: Codec) -> None:
        """Send frames as they came: in the encoding of their producer."""
        self.codec = codec

    def use_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Take all layers of each picture."""

    def first_frame(self, latest: Frame | None, by_layer: Mapping[int, Frame]) -> Frame | None:
        """The latest frame, behind the other layers of its picture."""
        if latest is not None:
            for frame in by_layer.values():
                if frame is not latest and frame.seq == latest.seq:
                    self.welcome(frame)
        return latest

    def offer(self, frame: Frame) -> bool:
        """Offer a frame. Returns False: only what viewers get is observed by the caller."""
        self._begin_frame(frame)
        written = super(EdgeConsumer, self).offer(frame)  # noqa: UP008 (slots)
        return self._observe(frame, written=written)

    def welcome(self, frame: Frame) -> bool:
        self._begin_frame(frame)
        written = super(EdgeConsumer, self).welcome(frame)  # noqa: UP008 (slots)
        return self._observe(frame, written=written)

    def _begin_frame(self, frame: Frame) -> None:
        self.use_codec(frame.codec)
        if frame.layer is not None and not frame.is_delta:
            self._begun.add(frame.layer.index)

    def skip_to_keyframe(self) -> None:
        self._begun.clear()
        super(EdgeConsumer, self).skip_to_keyframe()  # noqa: UP008 (slots)

    def _builds_on_nothing(self, frame: Frame) -> bool:
        if frame.layer is not None and frame.is_delta and frame.layer.index not in self._begun:
            return True  # another layer may go on
        return super(EdgeConsumer, self)._builds_on_nothing(frame)  # noqa: UP008 (slots)

    def _drop(self, frame: Frame, why: Drop) -> None:
        if frame.layer is None:
            super(EdgeConsumer, self)._drop(frame, why)  # noqa: UP008 (slots)
            return
        self._count_dropped(why)
        if not frame.is_discardable:
            self._begun.discard(frame.layer.index)

    def _observe(self, frame: Frame, *, written: bool) -> bool:
        if written:
            self._metrics.frame_age.observe(trio.current_time() - frame.accepted_at)
        return False

    def begin_epoch(self) -> None:
        if not self.lossless:
            self._drop_waiting(Drop.SUPERSEDED)
        super(EdgeConsumer, self).begin_epoch()  # noqa: UP008 (slots)

    def drop_waiting(self) -> None:
        self._drop_waiting(Drop.NO_ROOM)  # they may build on one another

    def give_up(self) -> None:
        """Go on with the newest frames: the link had no room for one that must not be missed."""
        if self._take_unready() is not None:
            self._count_dropped(Drop.LEFT)
            self.skip_to_keyframe()
        self._drop_waiting(Drop.LEFT)
        self.use_policy(lossless=False)
        cast("EdgePeer", self.peer).tell_lost(self.stream_id)

    def _hold(self, frame: Frame) -> None:
        self.outlet.held = frame  # a link is not cut off for one owner's frames

    def note_held(self, frame: Frame) -> None:
        pass

    def _let_wait(self, frame: Frame, size: int) -> None:
        if not self._has_room_for(size):
            if self.lossless:
                self.give_up()
            else:
                self._drop_waiting(Drop.SUPERSEDED)
            if self._builds_on_nothing(frame):
                self._drop(frame, Drop.UNDECODABLE)
                return
            self.obstacles &= ~NEEDS_KEYFRAME
        frame.keep()
        self._waiting.add(frame, size)
        self._totals.waiting += 1
        if self.waiting():
            self.outlet.line_up(self)

    def _has_room_for(self, size: int) -> bool:
        if self._recent is not None:
            return self._recent.has_room_for(size, trio.current_time())
        queue = cast("LosslessQueue", self._waiting)
        return queue.has_room_for(size)

    def _drop_waiting(self, why: Drop) -> None:
        while (dropped := self._take_waiting()) is not None:
            self._drop(dropped, why)
