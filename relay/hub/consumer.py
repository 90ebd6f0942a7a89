"""One subscription: a stream's frames on their way to one connection."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import trio
from attrs import define, field

from relay.hub.flow_control import Pace
from relay.hub.frames.frame import Burst, EncodedBurst, Frame
from relay.hub.keyframe_requests import KeyframeRequests
from relay.hub.layers.layer_set import LayerSet
from relay.hub.layers.selection import LayerSelection
from relay.hub.ledger import Drop
from relay.hub.paced_writer import (
    CLOSED,
    LAYERED,
    NEEDS_KEYFRAME,
    PACED,
    PROBE_DUE,
    THINNED,
    PacedWriter,
    ping_tokens,
)
from relay.hub.queues import TooSlow
from relay.model.access.identity import Identity
from relay.transport import wire
from relay.transport.link import Buffer
from relay.transport.outlet import Unready
from relay.transport.pacing import MAX_DELTA_QUEUE_SECONDS

MAX_PICTURES_BEHIND = 3
"""Pictures by which the first frame may be older than the latest one."""


@define(eq=False)
class Consumer(PacedWriter):
    """Delivers frames at the pace of its connection. A `PacedSource` of the connection's outlet.

    A frame that cannot be written at once waits in a bounded memory channel, by the policy of the
    terms. What a decoder could not use, because it builds on a dropped frame, is not sent at all.
    """

    stream_id: str
    wants_frames: bool
    wants_alerts: bool
    keyframe_requests: KeyframeRequests | None = None
    """Of the stream, once it is watched."""
    _frame_rate: Pace | None = field(init=False)
    _unready: Frame | None = None
    """The frame that the writer encodes. It counts as waiting."""
    _selection: LayerSelection | None = None
    """Of the layers of the stream; None if it has none, or if nothing is to choose."""

    def __attrs_post_init__(self) -> None:
        super(Consumer, self).__attrs_post_init__()  # noqa: UP008 (slots)
        period = self._flow_control.period
        self._frame_rate = None if period is None else Pace(period)
        if self._frame_rate is not None:
            self.obstacles |= THINNED

    @property
    def identity(self) -> Identity:
        """The consumer's identity, as it is known now."""
        return self.peer.identity

    @property
    def waiting_frames(self) -> int:
        selection = self._selection
        awaited = selection is not None and selection.awaited is not None
        return self._waiting.count + (self._unready is not None) + awaited

    def drop_waiting(self) -> None:
        """Drop the frame that waits, for want of room."""
        if (frame := self._take_waiting()) is not None:
            self._drop(frame, Drop.NO_ROOM)

    @property
    def layer(self) -> str | None:
        """The layer that it is to get, by its id; None where nothing is to choose."""
        selection = self._selection
        return None if selection is None else selection.layers.layers[selection.choice.target].id

    @property
    def may_want_smaller(self) -> bool:
        """Whether it may have a use for smaller pictures."""
        options = self._flow_control
        restricted = options.max_width is not None or options.layer is not None
        return restricted or bool(self.obstacles & (PACED | LAYERED))

    def use_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Get one of these layers of each picture behind `seq`, or what comes if there are none."""
        before = self._selection
        self._leave_layers()
        options = self._flow_control
        adapts = options.adapts and not self.lossless
        if layers is None or not (adapts or layers.from_producer):
            return
        self._selection = LayerSelection.begin(layers, seq, options, adapts=adapts)
        if before is not None:
            self._selection.choice.go_on_from(before.choice)
        self._follow_choice(self._selection)

    def change_layers(self, layers: LayerSet | None, seq: int) -> None:
        """Get one of these layers of each picture behind `seq`, unless it does already, or gets
        nothing any more."""
        selection = self._selection
        if not self.obstacles & CLOSED and (selection is None or selection.layers is not layers):
            self.use_layers(layers, seq)

    def would_take(self, frame: Frame) -> bool:
        """Whether a frame would be sent, or wait, if it were offered now."""
        if self.obstacles & CLOSED or self._builds_on_nothing(frame):
            return False
        return self._frame_rate is None or self._frame_rate.allows(trio.current_time())

    def offer(self, frame: Frame) -> bool:
        """Write a frame if the connection is idle, or queue it; returns whether it was written.

        Never waits, never raises. The caller observes the age of a frame that was written.
        """
        if self.obstacles & CLOSED:
            return False
        self.obstacles &= ~PROBE_DUE  # from here on the pacer is asked
        if self._selection is None or frame.layer is None:
            return self._begins(frame) and self._send_or_queue(frame)
        return self._is_chosen(frame, self._selection) and self._send_or_queue(frame)

    def awaits(self, seq: int) -> bool:
        """Whether it waits for a frame of this picture."""
        selection = self._selection
        return (
            selection is not None and selection.awaited is not None and selection.awaited_seq == seq
        )

    def offer_awaited(self, seq: int, frames: Mapping[int, Frame]) -> bool:
        """Offer what there is of a picture that it awaits, by layers; returns whether a frame was
        written."""
        selection = self._selection
        if selection is None or selection.awaited is None or not self.awaits(seq):
            return False
        frame = frames.get(selection.awaited)
        if frame is None:
            self._miss_awaited(selection)
            self._take_next_in_time()
            return False
        self._take_awaited(selection)
        return self._send_or_queue(frame)

    def first_frame(self, latest: Frame | None, by_layer: Mapping[int, Frame]) -> Frame | None:
        """The frame to begin with: the latest, in the layer that suits it if that is as new."""
        selection = self._selection
        if latest is None or selection is None:
            return latest
        new = {
            index: each
            for index, each in by_layer.items()
            if each.seq >= latest.seq - MAX_PICTURES_BEHIND
        }
        if new and selection.may_begin_small(self._pacer):
            return new[min(new)]
        return new.get(selection.choice.target, latest)

    def welcome(self, frame: Frame) -> bool:
        """Offer the first frame, whatever layer it is of; returns whether it was written."""
        selection = self._selection
        if self.obstacles & CLOSED or not self._begins(frame):
            return False
        written = self._send_or_queue(frame)
        if selection is not None and frame.layer is not None:
            selection.seq = frame.seq
            if frame.seq <= selection.layers.since:
                selection.sent = None  # it was of other layers, and nothing here builds on it
        return written

    def _begins(self, frame: Frame) -> bool:
        """Count a picture, and drop it if it is of no use now."""
        self._count_accepted()
        if frame.keyframe is not None:
            self._queue_seconds = MAX_DELTA_QUEUE_SECONDS
        if self._builds_on_nothing(frame):  # no layer of a picture is a keyframe, or all are
            self._drop(frame, Drop.UNDECODABLE)
            self._ask_for_keyframe()
        elif self._frame_rate is not None and not self._frame_rate.is_due(trio.current_time()):
            self._drop(frame, Drop.THINNED)
        else:
            return True
        return False

    def _is_chosen(self, frame: Frame, selection: LayerSelection) -> bool:
        """Whether this is the frame of its picture to send. The choice is made with the first."""
        layer = frame.layer
        assert layer is not None
        if selection.awaited == layer.index and selection.awaited_seq == frame.seq:
            self._take_awaited(selection)
            return True
        if frame.seq <= selection.seq:
            return False  # another layer of a picture that was decided on
        selection.seq = frame.seq
        if not self._begins(frame):
            return False
        chosen = self._choose_layer(selection, frame)
        if chosen == layer.index:
            self._miss_awaited(selection)
            return True
        if layer.may_be_followed_by(chosen):
            self._miss_awaited(selection)
            selection.await_frame(chosen, frame.seq)
            self._totals.waiting += 1
        else:
            self._count_dropped(Drop.NO_LAYER)
            self._take_next_in_time()
        return False

    def _take_next_in_time(self) -> None:
        """Take the next picture for one that was due and does not come in its layer."""
        if self._frame_rate is not None:
            self._frame_rate.skip()

    def _choose_layer(self, selection: LayerSelection, frame: Frame) -> int:
        """The layer for the picture that begins with this frame."""
        before = selection.choice.target
        chosen = selection.choose(self._pacer, self.outlet, self._byte_rate)
        target = selection.choice.target
        if target != before:
            self._metrics.layer_switches["up" if target > before else "down"] += 1
        selection.goes_on = frame.is_delta and selection.sent not in {None, chosen}
        self._follow_choice(selection)
        if selection.sent is None or not selection.goes_on:
            return chosen
        # Deltas go on in their layer; all layers of a picture are keyframes, or none.
        if self.keyframe_requests is not None:
            self.keyframe_requests.make(self.identity.sender)
        return selection.sent

    def _follow_choice(self, selection: LayerSelection) -> None:
        """Ask for the layers that are needed, and for a look at each picture if there is more than
        one to choose from."""
        selection.update_needs()
        if selection.takes_largest:
            self.obstacles &= ~LAYERED
        else:
            self.obstacles |= LAYERED

    def _continues_layer(self, frame: Frame) -> bool:
        """Whether a frame of a layer can be decoded behind what was sent; then it is sent."""
        if frame.layer is None or self._selection is None:
            return True
        builds_on_other = frame.is_delta and self._selection.sent != frame.layer.index
        if builds_on_other or self._builds_on_nothing(frame):
            return False
        self._selection.sent = frame.layer.index
        return True

    def _take_awaited(self, selection: LayerSelection) -> None:
        selection.awaited = None
        self._totals.waiting -= 1

    def _miss_awaited(self, selection: LayerSelection) -> None:
        """Give up the frame of an earlier picture, if one is awaited."""
        if selection.awaited is not None:
            self._take_awaited(selection)
            self._count_dropped(Drop.NO_LAYER)

    def _leave_layers(self) -> None:
        if self._selection is not None:
            self._miss_awaited(self._selection)
            self._selection.leave()
            self._selection = None
            self.obstacles &= ~LAYERED

    def _send_or_queue(self, frame: Frame) -> bool:
        if self.obstacles & PACED:
            self._note_offered(frame)
        if not self._continues_layer(frame):
            self._drop(frame, Drop.UNDECODABLE)
            self._ask_for_keyframe()
        elif frame.is_large and not self._is_encoded(frame):
            self.obstacles &= ~NEEDS_KEYFRAME
            self._let_wait(frame, frame.size)  # the writer encodes it, and lets others go on
        elif self.takes_parts and (parts := frame.parts(self.codec)) is not None:
            return self._offer_parts(frame, parts)
        elif (encoded := frame.encoded(self.codec)) is None:
            self._drop(frame, Drop.UNENCODABLE)
        else:
            self.obstacles &= ~NEEDS_KEYFRAME
            if (
                not self._waiting.count
                and self._may_send(frame)
                and self._write_now(frame, encoded)
            ):
                self.note_held(frame)
                return True
            self._let_wait(frame, len(encoded))
        return False

    def queue(self, frame: Frame, size: int) -> None:
        """Let a frame wait of this size that the connection did not take at once, though nothing
        else was in its way."""
        self._count_accepted()
        self._let_wait(frame, size)

    def offer_burst(self, burst: Burst) -> int:
        """Offer frames that arrived together, in one write if possible; returns the number written.

        Those that the link does not take at once are offered one by one: they may be skipped.
        """
        begun = 0
        in_the_way = self.obstacles or self._waiting.count or burst.missing_reference
        if not (in_the_way or (self.takes_parts and burst.has_long)):
            encoded = burst.encoded(self.codec)
            if encoded is not None:
                begun = self.outlet.write_burst_now(encoded.whole, encoded.ends)
                self.written_at_once += begun
                self._totals.frames.accepted += begun
                self._totals.frames.written += begun
                if begun == len(burst.frames):
                    return begun
        for frame in burst.frames[begun:]:
            self._is_followed = burst.frames[-1].seq > frame.seq
            begun += self.offer(frame)
        return begun

    def begin_epoch(self) -> None:
        """Begin a new epoch of the stream: no frame of the last one may come after its status."""
        self.expect_pictures()
        self._leave_layers()
        self._renew_window()
        cut_off = self._unsent_parts is not None
        self._end_parts()
        if self.lossless and (self.waiting_frames or cut_off):
            self.give_up()
            return
        if self._take_unready() is not None:
            self._count_dropped(Drop.SUPERSEDED)
        if (frame := self._take_waiting()) is not None:
            self._drop(frame, Drop.SUPERSEDED)
        elif cut_off:
            self.obstacles |= NEEDS_KEYFRAME

    def skip_to_keyframe(self) -> None:
        """Send no delta before the next keyframe."""
        self.obstacles |= NEEDS_KEYFRAME

    def take(self) -> Buffer | Unready | None:
        if self._unsent_parts is not None:
            return self._next_part()
        if not self._may_send():
            return None
        if self._waiting.count and self._pacer is not None:
            now = trio.current_time()
            if self._pacer.wants_ping(now, self._may_queue()):
                token = next(ping_tokens)
                self._pacer.ping_sent(token, now)
                return wire.probe(token)  # alone, see `_ping`; the frame has the next turn
        frame = self._take_waiting()
        if frame is not None and self._was_chosen_blindly(frame):
            self._count_dropped(Drop.NO_LAYER)
            frame = None
        if frame is None:
            return None
        if frame.is_large and not self._is_encoded(frame):
            self._unready = frame
            self._totals.waiting += 1
            return partial(self._encode, frame)
        return self._send(frame)

    def _was_chosen_blindly(self, frame: Frame) -> bool:
        """Whether a picture that waited is to be left out, since the next one will be smaller."""
        selection, stands_alone = self._selection, frame.keyframe is None
        if selection is None or frame.layer is None or not stands_alone:
            return False
        return selection.was_blind(frame.seq, frame.layer.index, self._pacer)

    async def _encode(self, frame: Frame) -> Buffer | None:
        """Make a large frame ready to send, unless that is of no use any more."""
        await frame.encode(self.codec, in_parts=self.takes_parts)
        if self._unready is not frame or self.outlet.closing:
            return None
        self._take_unready()
        if (frame.parts if self.takes_parts else frame.encoded)(self.codec) is None:
            self._drop(frame, Drop.UNENCODABLE)
            return None
        first = self._send(frame)
        if self.waiting():
            self.outlet.line_up(self)  # for its other parts: it left the line without any
        frame.account.keep_within_limits()
        return first

    def close(self) -> None:
        """Accept no more frames, and drop those that wait, and the rest of one in parts."""
        self.obstacles |= CLOSED
        self.outlet.stop_pacing(self)
        self._end_parts()
        while self._take_unready() is not None or self._take_waiting() is not None:
            self._count_dropped(Drop.LEFT)
            self.obstacles |= NEEDS_KEYFRAME
        self._leave_layers()

    def reopen(self) -> None:
        """Accept frames again, as a new consumer would."""
        self.obstacles &= ~CLOSED
        self.expect_pictures()
        self._join_pacer()
        self._renew_window()

    def _builds_on_nothing(self, frame: Frame) -> bool:
        """Whether a frame builds on one that was left out, or never arrived."""
        gap = bool(self.obstacles & NEEDS_KEYFRAME) or frame.missing_reference
        return gap and frame.is_delta

    def _offer_parts(self, frame: Frame, parts: EncodedBurst) -> bool:
        """Offer a frame that is sent in parts; see `offer`."""
        self.obstacles &= ~NEEDS_KEYFRAME
        if not self._waiting.count and self._unsent_parts is None and self._may_send(frame):
            now, size = trio.current_time(), len(parts.whole)
            if self._ping(frame, now) and not self._may_send(frame):
                self._let_wait(frame, size)
                return False
            probed = self._wants_answer(size, now)
            if probed:
                parts = parts.probed
            begun = self.outlet.write_burst_now(parts.whole, parts.ends, frame)
            if begun:
                self._note_sent(frame, size, now, probed=probed)
                self.note_held(frame)
                if begun < len(parts.ends):
                    self._begin_parts(frame, parts.after(begun))
                    self.outlet.line_up(self)
                return True
        self._let_wait(frame, len(parts.whole))
        return False

    def _ask_for_keyframe(self) -> None:
        """Ask for what can be decoded, as soon as it can be sent. A consumer that wants fewer
        frames leaves out what others build on all the time, and waits for those that come."""
        requests = self.keyframe_requests
        if requests is None or self._frame_rate is not None:
            return
        if not self.keeps_frames and self._may_send():
            requests.make(self.identity.sender)

    def _let_wait(self, frame: Frame, size: int) -> None:
        if frame.is_discardable and self._is_followed and not self.keeps_frames:
            # It would be in the way of what has come with it, for which there is room on the link.
            self._drop(frame, Drop.SUPERSEDED)
            return
        try:
            displaced = self._waiting.add(frame, size)
        except TooSlow:
            self._drop(frame, Drop.LEFT)
            self.give_up()
            return
        if displaced is frame:
            self._drop(frame, Drop.SUPERSEDED)
        else:
            frame.keep()
            if displaced is None:
                self._totals.waiting += 1
            else:
                # Nothing builds on it any more, or ever did, so there is nothing to wait for.
                self._count_dropped(Drop.SUPERSEDED)
        if self.waiting():
            self.outlet.line_up(self)

    def give_up(self) -> None:
        """End the connection, for which too much waits."""
        self.close()
        self.peer.too_slow()

    def _take_waiting(self) -> Frame | None:
        frame = self._waiting.take()
        if frame is not None:
            self._totals.waiting -= 1
        return frame

    def _take_unready(self) -> Frame | None:
        frame, self._unready = self._unready, None
        if frame is not None:
            self._totals.waiting -= 1
        return frame

    def _drop(self, frame: Frame, why: Drop) -> None:
        self._count_dropped(why)
        if not frame.is_discardable:
            self.obstacles |= NEEDS_KEYFRAME

    def _count_accepted(self) -> None:
        self._ledger.accepted += 1
        self._totals.frames.accepted += 1

    def _count_dropped(self, why: Drop) -> None:
        self._ledger.dropped[why] += 1
        self._totals.frames.dropped[why] += 1
