"""One subscription: a stream's frames on their way to one connection."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from functools import partial
from itertools import count

import trio
from attrs import define, field

from relay.hub.flow_control import FlowControlOptions, Pace, Window
from relay.hub.frames.frame import Burst, EncodedBurst, Frame, FrameForm
from relay.hub.keyframe_requests import KeyframeRequests
from relay.hub.layers.layer_set import LayerSet
from relay.hub.layers.selection import LayerSelection
from relay.hub.ledger import Drop, Ledger, Totals
from relay.hub.peer import ConsumingPeer
from relay.hub.queues import MAX_LOSSLESS_FRAMES, FrameQueue, LatestQueue, LosslessQueue, TooSlow
from relay.metrics import Metrics
from relay.model.access.identity import Identity
from relay.protocol.reports import LinkReport
from relay.transport import wire
from relay.transport.link import Buffer
from relay.transport.outlet import MIN_HELD_BYTES, RATE_SECONDS, Outlet, Unready, decayed
from relay.transport.pacing import (
    CALM_PROBE_INTERVAL,
    EARLY,
    MAX_DELTA_QUEUE_SECONDS,
    MAX_DISCARDABLE_QUEUE_SECONDS,
    MAX_QUEUE_SECONDS,
    Pacer,
)

CLOSED, NEEDS_KEYFRAME, THINNED, WINDOWED, PACED, PROBE_DUE, LAYERED = 1, 2, 4, 8, 16, 32, 64
"""Why not every frame may be written as soon as the connection is idle: bits, so that one look
tells that there is no reason, as it nearly always is."""

MAX_FRESHER_WAIT, FRESHER_TOLERANCE = 0.02, 0.012
"""Seconds for which a free link waits for a newer picture than the one that it could carry now, and
by which that may be late: a smaller one takes time to be made."""
INTERVAL_WEIGHT, MAX_INTERVAL = 0.2, 1.0
"""Of the newest time between two pictures in the usual one, and the longest that counts."""
MAX_PICTURES_BEHIND = 3
"""Pictures by which the first frame may be older than the latest one."""

_ping_tokens = count(2, 2)
"""Those of frames are odd."""


@define(eq=False)
class Consumer:
    """Delivers frames at the pace of its connection. A `PacedSource` of the connection's outlet.

    A frame that cannot be written at once waits in a bounded memory channel, by the policy of the
    terms. What a decoder could not use, because it builds on a dropped frame, is not sent at all.
    """

    stream_id: str
    wants_frames: bool
    wants_alerts: bool
    peer: ConsumingPeer
    outlet: Outlet
    _metrics: Metrics
    _flow_control: FlowControlOptions
    _lossless_bytes: int
    """Bytes that may wait under the policy `lossless`."""
    _totals: Totals
    _form: FrameForm | None = None
    """What its frames go out as, if not messages of a WebSocket. Then nothing answers probes, and
    it goes by what the kernel has not sent."""
    keyframe_requests: KeyframeRequests | None = None
    """Of the stream, once it is watched."""
    in_line: bool = False
    obstacles: int = 0
    look_at: float = -math.inf
    """When `look_at_link` is to be called, by Trio's clock."""
    written_at_once: int = 0
    """Frames that were accepted and written in one pass over the audience, since the ledger was
    last read."""
    _ledger: Ledger = field(factory=Ledger)
    _waiting: FrameQueue = field(init=False)
    _frame_rate: Pace | None = field(init=False)
    _window: Window | None = field(init=False)
    codec: FrameForm = field(init=False)
    takes_parts: bool = field(init=False)
    _unsent_parts: deque[Buffer] | None = None
    """Of a long frame of which parts were written. Other messages may go before these."""
    _cut_frame: Frame | None = None
    """That frame."""
    _unready: Frame | None = None
    """The frame that the writer encodes. It counts as waiting."""
    _pacer: Pacer | None = None
    """Of the connection; None for one that must miss no frame."""
    _is_followed: bool = False
    """Whether a later picture came together with the frame that is offered."""
    _queue_seconds: float = MAX_QUEUE_SECONDS
    """Time that its frames may wait at the narrow place of the link."""
    _offered_at: float = -math.inf
    """When the last frame that could be sent was accepted."""
    _interval: float = 0.0
    """Usual seconds between two of these, while the link is not calm."""
    _byte_rate: float = 0.0
    _sent_at: float = 0.0
    """When that was reckoned."""
    _selection: LayerSelection | None = None
    """Of the layers of the stream; None if it has none, or if nothing is to choose."""

    def __attrs_post_init__(self) -> None:
        self.codec, self.takes_parts = self._form or self.peer.codec, self.peer.takes_parts
        options = self._flow_control
        lossless = options.policy == "lossless"
        self._waiting = (
            LosslessQueue(MAX_LOSSLESS_FRAMES, self._lossless_bytes) if lossless else LatestQueue()
        )
        self._frame_rate = None if options.period is None else Pace(options.period)
        self._window = None if options.window is None else Window(options.window)
        self.obstacles = (THINNED if self._frame_rate else 0) | (WINDOWED if self._window else 0)
        self._join_pacer()

    @property
    def ledger(self) -> Ledger:
        """What became of its frames."""
        self._ledger.accepted += self.written_at_once
        self._ledger.written += self.written_at_once
        self.written_at_once = 0
        return self._ledger

    @property
    def identity(self) -> Identity:
        """The consumer's identity, as it is known now."""
        return self.peer.identity

    @property
    def waiting_frames(self) -> int:
        selection = self._selection
        awaited = selection is not None and selection.awaited is not None
        return self._waiting.count + (self._unready is not None) + awaited

    @property
    def keeps_frames(self) -> bool:
        """Whether frames wait for it, or parts of one."""
        return self._waiting.count > 0 or self._unsent_parts is not None

    def link(self) -> LinkReport | None:
        """What is known of the link of its connection; None if that is not measured."""
        pacer = self.outlet.pacer
        if pacer is None or not pacer.answering:
            return None
        bandwidth = pacer.known_bandwidth(trio.current_time())
        under_way = pacer.bytes_under_way if pacer.expects_answer else 0
        return LinkReport(
            round_trip_seconds=round(pacer.round_trip, 6) if pacer.has_round_trip else None,
            bytes_per_second=None if bandwidth is None else round(bandwidth),
            bytes_under_way=None if pacer.calm else under_way,
            calm=pacer.calm,
        )

    def has_parts_of(self, frame: Frame) -> bool:
        """Whether it has yet to send some parts of a frame."""
        return self._cut_frame is frame

    @property
    def waiting_since(self) -> float:
        """About when the oldest waiting frame was accepted, by Trio's clock."""
        return self._waiting.since

    @property
    def lossless(self) -> bool:
        """Whether it must miss no frame."""
        return isinstance(self._waiting, LosslessQueue)

    def drop_waiting(self) -> None:
        """Drop the frame that waits, for want of room."""
        if (frame := self._take_waiting()) is not None:
            self._drop(frame, Drop.NO_ROOM)

    def drop_parts(self) -> None:
        """Leave out the rest of a frame of which the peer has some parts, for want of room."""
        if self._cut_frame is not None:
            if self._window is not None:
                self._window.forget(self._cut_frame.seq)
            self._end_parts()
            self.obstacles |= NEEDS_KEYFRAME

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
        self._leave_layers()
        options = self._flow_control
        adapts = options.adapts and not self.lossless
        if layers is None or not (adapts or layers.from_producer):
            return
        self._selection = LayerSelection.begin(layers, seq, options, adapts=adapts)
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
        chosen = selection.choose(self._pacer, self.outlet, self._byte_rate_at)
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

    def note_held(self, frame: Frame) -> None:
        """Note whether the connection holds the rest of a large frame that was just written."""
        if self.outlet.held is frame:
            frame.note_slow(self.peer)

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

    def expect_pictures(self) -> None:
        """Let no frame queue on the link, until one comes that others build on."""
        self._queue_seconds = MAX_QUEUE_SECONDS

    def skip_to_keyframe(self) -> None:
        """Send no delta before the next keyframe."""
        self.obstacles |= NEEDS_KEYFRAME

    def acknowledge(self, seq: int) -> None:
        """Note that the consumer has received this frame and all before it."""
        if self._window is not None:
            self._window.acknowledge(seq)
            if self.waiting():
                self.outlet.line_up(self)

    def pacer_changed(self) -> None:
        """Look again whether to send, since the pacer knows more than before."""
        self._look_at_pacer()
        if self._waiting.count and self.waiting():
            self.outlet.line_up(self)

    def take(self) -> Buffer | Unready | None:
        if self._unsent_parts is not None:
            return self._next_part()
        if not self._may_send():
            return None
        if self._waiting.count and self._pacer is not None:
            now = trio.current_time()
            if self._pacer.wants_ping(now, self._may_queue()):
                token = next(_ping_tokens)
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

    def _is_encoded(self, frame: Frame) -> bool:
        return frame.is_encoded(self.codec, in_parts=self.takes_parts)

    def _send(self, frame: Frame) -> Buffer | None:
        """The frame as it goes out, or the first part of it."""
        now = trio.current_time()
        self._metrics.frame_age.observe(now - frame.accepted_at)
        if self.takes_parts and (parts := frame.parts(self.codec)) is not None:
            size = len(parts.whole)
            probed = self._wants_answer(size, now, waited=True)
            if probed:
                parts = parts.probed
            self._begin_parts(frame, parts.after(0))
            self._note_sent(frame, size, now, probed=probed)
            return self._next_part()
        encoded = frame.encoded(self.codec)
        assert encoded is not None
        size = len(encoded)
        probed = self._wants_answer(size, now, waited=True)
        if size >= MIN_HELD_BYTES:
            self._hold(frame)
        if probed:
            encoded = frame.probed(self.codec)
        self._note_sent(frame, size, now, probed=probed)
        return encoded

    def waiting(self) -> bool:
        return self._unsent_parts is not None or (self._waiting.count > 0 and self._may_send())

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

    def _begin_parts(self, frame: Frame, unsent: deque[Buffer]) -> None:
        frame.keep()
        self._cut_frame, self._unsent_parts = frame, unsent

    def _next_part(self) -> Buffer:
        frame, unsent = self._cut_frame, self._unsent_parts
        assert frame is not None
        assert unsent is not None
        part = unsent.popleft()
        self._hold(frame)
        if not unsent:
            self._end_parts()
        return part

    def _end_parts(self) -> None:
        cut_off = self._pacer is not None and self._unsent_parts
        self._cut_frame = self._unsent_parts = None
        if cut_off:
            self.outlet.expect_no_answers()

    def _may_send(self, frame: Frame | None = None) -> bool:
        """Whether to send a frame now; without one, the frame that waits."""
        if self._window is not None and not self._window.is_open:
            return False
        pacer = self._pacer
        if pacer is None or pacer.calm:
            return True
        now, queue_seconds = trio.current_time(), self._may_queue(frame)
        if not pacer.may_send(now, queue_seconds):
            self.outlet.recheck_at(pacer.room_at(now, queue_seconds))
            return False
        if frame is None and now < (newer_until := self._newer_until(now)):
            self.outlet.recheck_at(newer_until)
            return False
        return True

    def _may_queue(self, frame: Frame | None = None) -> float:
        """For how many seconds a frame may queue on the link; without one, the frame that waits."""
        if self._waiting.discardable if frame is None else frame.is_discardable:
            return min(self._queue_seconds, MAX_DISCARDABLE_QUEUE_SECONDS)
        return self._queue_seconds

    def _newer_until(self, now: float) -> float:
        """Until when a link that carries fewer pictures than there are should wait, since the one
        that waits is soon replaced by a newer one; -inf if not at all."""
        if not (self._waiting.count and self._interval) or self.outlet.is_shared:
            return -math.inf  # else the streams of those who are asked first would have more turns
        due = self._offered_at + self._interval
        is_soon = due - now <= min(MAX_FRESHER_WAIT, self._interval / 2)
        # Where frames build on one another, none is replaced.
        stands_alone = self._queue_seconds <= MAX_QUEUE_SECONDS
        return due + FRESHER_TOLERANCE if is_soon and stands_alone else -math.inf

    def _note_offered(self, frame: Frame) -> None:
        """Note that a frame has come that could be sent."""
        interval = frame.accepted_at - self._offered_at
        self._offered_at = frame.accepted_at
        if interval < MAX_INTERVAL:
            weight = INTERVAL_WEIGHT if self._interval else 1.0
            self._interval += (interval - self._interval) * weight

    def _ask_for_keyframe(self) -> None:
        """Ask for what can be decoded, as soon as it can be sent. A consumer that wants fewer
        frames leaves out what others build on all the time, and waits for those that come."""
        requests = self.keyframe_requests
        if requests is None or self._frame_rate is not None:
            return
        if not self.keeps_frames and self._may_send():
            requests.make(self.identity.sender)

    def _write_now(self, frame: Frame, encoded: Buffer) -> bool:
        """Write a frame, with the probes that the pacer wants, if the connection is idle."""
        now, size = trio.current_time(), len(encoded)
        if self._ping(frame, now) and not self._may_send(frame):
            return False
        probed = self._wants_answer(size, now)
        if probed:
            encoded = frame.probed(self.codec)
        if not self.outlet.write_now(encoded, frame):
            return False
        self._note_sent(frame, size, now, probed=probed)
        return True

    def _ping(self, frame: Frame, now: float) -> bool:
        """Measure the round trip ahead of this frame, if the pacer wants that and the connection is
        idle; whether a ping was written."""
        pacer = self._pacer
        if pacer is None or pacer.calm or not pacer.wants_ping(now, self._may_queue(frame)):
            return False
        if self._is_followed and pacer.parts_pings(now):
            return False
        # Written alone: the peer may read a TLS record, and so a ping, only as a whole.
        token = next(_ping_tokens)
        written = self.outlet.write_now(wire.probe(token))
        if written:
            pacer.ping_sent(token, now)
        return written

    def _wants_answer(self, size: int, now: float, *, waited: bool = False) -> bool:
        """Whether to send a probe with the frame that is sent now, at once or after it waited."""
        pacer = self._pacer
        return pacer is not None and pacer.wants_probe(size, now, waited=waited)

    def _note_sent(self, frame: Frame, size: int, now: float, *, probed: bool) -> None:
        """Count a frame that was written, with a probe behind it or without."""
        self._ledger.written += 1
        self._totals.frames.written += 1
        if self._window is not None:
            self._window.sent(frame.seq)
        pacer = self._pacer
        if pacer is not None and (probed or not pacer.calm):
            if self.outlet.is_shared:
                self._byte_rate = self._byte_rate_at(now) + size / RATE_SECONDS
                self._sent_at = now
                self.outlet.count_paced(size, now)
            calm = pacer.calm
            token = frame.token if probed else None
            pacer.frame_sent(token, size, now, frame.accepted_at)
            self.outlet.give_turn(self)
            if pacer.calm is not calm:
                self.outlet.tell_paced()

    def _byte_rate_at(self, now: float) -> float:
        """The bytes a second that it sends, about, while the link is not calm and others share
        it."""
        return decayed(self._byte_rate, now - self._sent_at)

    def look_at_link(self, now: float) -> None:
        """Look, while the link is calm, whether an answer is missing, and whether the next frame is
        to go with a probe."""
        pacer = self._pacer
        if pacer is None or not pacer.calm:
            self.look_at = now  # the same number for all, which takes no memory
        elif pacer.notices_delay(now):
            self.outlet.tell_paced()
        else:
            if pacer.wants_probe(0, now):
                self.obstacles |= PROBE_DUE
            self.look_at = now + EARLY * min(pacer.probe_interval, CALM_PROBE_INTERVAL)

    def _join_pacer(self) -> None:
        if not self.lossless and self._form is None:
            self._pacer = self.outlet.pace(self, self._metrics.links)
            self._look_at_pacer()

    def _leave_pacer(self) -> None:
        self.outlet.stop_pacing(self)
        self._pacer = None
        self.obstacles &= ~(PACED | PROBE_DUE)

    def _look_at_pacer(self) -> None:
        """Be asked for each frame as long as the link is not calm."""
        if self._pacer is not None and not self._pacer.calm:
            self.obstacles |= PACED
        else:
            self.obstacles &= ~PACED

    def _renew_window(self) -> None:
        """Expect no acknowledgement of what was sent so far."""
        if self._window is not None:
            self._window = Window(self._window.size)

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

    def _hold(self, frame: Frame) -> None:
        """Keep a large frame as long as the peer has only a part of it."""
        self.outlet.held = frame
        frame.note_slow(self.peer)

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
