"""When frames are written to one connection, and how: as soon as its link has room for them."""

from __future__ import annotations

import math
from collections import deque
from itertools import count

import trio
from attrs import define, field

from relay.hub.flow_control import FlowControlOptions, Window
from relay.hub.frames.frame import Frame, FrameForm
from relay.hub.ledger import Ledger, Totals
from relay.hub.peer import ConsumingPeer
from relay.hub.queues import MAX_LOSSLESS_FRAMES, FrameQueue, LatestQueue, LosslessQueue
from relay.metrics import Metrics
from relay.protocol.reports import LinkReport
from relay.transport import wire
from relay.transport.link import Buffer
from relay.transport.outlet import MIN_HELD_BYTES, NO_BYTES, ByteRate, Outlet, Unready
from relay.transport.pacing import (
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

ping_tokens = count(2, 2)
"""Those of frames are odd."""


@define(eq=False, kw_only=True)
class PacedWriter:
    """Writes the frames of one subscription when its link has room: what a `Consumer` knows of its
    connection.

    It measures the link by probes, and keeps to the window of the subscriber. Long frames go out in
    parts, between which other messages may go. Which frames these are is for the consumer to say.
    """

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
    in_line: bool = False
    obstacles: int = 0
    look_at: float = -math.inf
    """When `look_at_link` is to be called, by Trio's clock."""
    written_at_once: int = 0
    """Frames that were accepted and written in one pass over the audience, since the ledger was
    last read."""
    _ledger: Ledger = field(factory=Ledger)
    _waiting: FrameQueue = field(init=False)
    _window: Window | None = field(init=False)
    codec: FrameForm = field(init=False)
    takes_parts: bool = field(init=False)
    _unsent_parts: deque[Buffer] | None = None
    """Of a long frame of which parts were written. Other messages may go before these."""
    _cut_frame: Frame | None = None
    """That frame."""
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
    _passed_over_at: float | None = None
    """What `_offered_at` was when a picture began to wait for a newer one; None if none has since a
    frame was last sent."""
    _byte_rate: ByteRate = NO_BYTES
    """Of what it sends while the link is not calm and others share it."""

    def __attrs_post_init__(self) -> None:
        self.codec, self.takes_parts = self._form or self.peer.codec, self.peer.takes_parts
        options = self._flow_control
        lossless = options.policy == "lossless"
        self._waiting = (
            LosslessQueue(MAX_LOSSLESS_FRAMES, self._lossless_bytes) if lossless else LatestQueue()
        )
        self._window = None if options.window is None else Window(options.window)
        self.obstacles = WINDOWED if self._window else 0
        self._join_pacer()

    def take(self) -> Buffer | Unready | None:
        """Return the next frame to write, chosen now; None when there is none after all."""
        raise NotImplementedError

    def waiting(self) -> bool:
        return self._unsent_parts is not None or (self._waiting.count > 0 and self._may_send())

    @property
    def ledger(self) -> Ledger:
        """What became of its frames."""
        self._ledger.accepted += self.written_at_once
        self._ledger.written += self.written_at_once
        self.written_at_once = 0
        return self._ledger

    @property
    def keeps_frames(self) -> bool:
        """Whether frames wait for it, or parts of one."""
        return self._waiting.count > 0 or self._unsent_parts is not None

    @property
    def waiting_since(self) -> float:
        """About when the oldest waiting frame was accepted, by Trio's clock."""
        return self._waiting.since

    @property
    def lossless(self) -> bool:
        """Whether it must miss no frame."""
        return isinstance(self._waiting, LosslessQueue)

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
        if pacer.calm:  # from now on the peer is served as one that does not answer
            self.outlet.tell_paced()
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
        if self._passed_over_at not in {None, self._offered_at}:
            return -math.inf  # that has come, and on a busy machine the next one is always due soon
        due = self._offered_at + self._interval
        is_soon = due - now <= min(MAX_FRESHER_WAIT, self._interval / 2)
        # Where frames build on one another, none is replaced.
        stands_alone = self._queue_seconds <= MAX_QUEUE_SECONDS
        if not (is_soon and stands_alone):
            return -math.inf
        self._passed_over_at = self._offered_at
        return due + FRESHER_TOLERANCE

    def _note_offered(self, frame: Frame) -> None:
        """Note that a frame has come that could be sent."""
        interval = frame.accepted_at - self._offered_at
        self._offered_at = frame.accepted_at
        if interval < MAX_INTERVAL:
            weight = INTERVAL_WEIGHT if self._interval else 1.0
            self._interval += (interval - self._interval) * weight

    def expect_pictures(self) -> None:
        """Let no frame queue on the link, until one comes that others build on."""
        self._queue_seconds = MAX_QUEUE_SECONDS

    def acknowledge(self, seq: int) -> None:
        """Note that the consumer has received this frame and all before it."""
        if self._window is not None:
            self._window.acknowledge(seq)
            if self.waiting():
                self.outlet.line_up(self)

    @property
    def window_has_room(self) -> bool:
        """Whether the next frame is within the window, and none waits to go before it."""
        return self._window is not None and self._window.is_open and not self._waiting.count

    def note_in_flight(self, frame: Frame) -> None:
        """Count a frame in the window that was written while nothing else was in its way."""
        if self._window is not None:
            self._window.sent(frame.seq)

    def _renew_window(self) -> None:
        """Expect no acknowledgement of what was sent so far."""
        if self._window is not None:
            self._window = Window(self._window.size)

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

    def _note_sent(self, frame: Frame, size: int, now: float, *, probed: bool) -> None:
        """Count a frame that was written, with a probe behind it or without."""
        self._passed_over_at = None
        self._ledger.written += 1
        self._totals.frames.written += 1
        if self._window is not None:
            self._window.sent(frame.seq)
        pacer = self._pacer
        if pacer is not None and (probed or not pacer.calm):
            if self.outlet.is_shared:
                self._byte_rate = self._byte_rate.with_more(size, now)
                self.outlet.count_paced(size, now)
            calm = pacer.calm
            token = frame.token if probed else None
            pacer.frame_sent(token, size, now, frame.accepted_at)
            self.outlet.give_turn(self)
            if pacer.calm is not calm:
                self.outlet.tell_paced()
            self.look_at = min(self.look_at, pacer.look_again_at(now))

    def _hold(self, frame: Frame) -> None:
        """Keep a large frame as long as the peer has only a part of it."""
        self.outlet.held = frame
        frame.note_slow(self.peer)

    def note_held(self, frame: Frame) -> None:
        """Note whether the connection holds the rest of a large frame that was just written."""
        if self.outlet.held is frame:
            frame.note_slow(self.peer)

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

    def has_parts_of(self, frame: Frame) -> bool:
        """Whether it has yet to send some parts of a frame."""
        return self._cut_frame is frame

    def drop_parts(self) -> None:
        """Leave out the rest of a frame of which the peer has some parts, for want of room."""
        if self._cut_frame is not None:
            if self._window is not None:
                self._window.forget(self._cut_frame.seq)
            self._end_parts()
            self.obstacles |= NEEDS_KEYFRAME

    def _ping(self, frame: Frame, now: float) -> bool:
        """Measure the round trip ahead of this frame, if the pacer wants that and the connection is
        idle; whether a ping was written."""
        pacer = self._pacer
        if pacer is None or pacer.calm or not pacer.wants_ping(now, self._may_queue(frame)):
            return False
        if self._is_followed and pacer.parts_pings(now):
            return False
        # Written alone: the peer may read a TLS record, and so a ping, only as a whole.
        token = next(ping_tokens)
        written = self.outlet.write_now(wire.probe(token))
        if written:
            pacer.ping_sent(token, now)
        return written

    def _wants_answer(self, size: int, now: float, *, waited: bool = False) -> bool:
        """Whether to send a probe with the frame that is sent now, at once or after it waited."""
        pacer = self._pacer
        return pacer is not None and pacer.wants_probe(size, now, waited=waited)

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
            self.look_at = pacer.look_again_at(now, shared=self.outlet.is_shared)

    def pacer_changed(self) -> None:
        """Look again whether to send, since the pacer knows more than before."""
        self._look_at_pacer()
        if self._waiting.count and self.waiting():
            self.outlet.line_up(self)

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
